package e2e

import (
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// shutdown is the SHUTDOWN_TIMEOUT of these tests. It is short, so that a slow shutdown
// fails them.
const shutdown = 4 * time.Second

// stopWithin sends sig to s and checks that s exits with status 0 within most. It returns
// how long that took.
func (s *service) stopWithin(sig syscall.Signal, most time.Duration) time.Duration {
	s.t.Helper()
	asked := time.Now()
	s.signal(sig)
	s.wantExit(0)
	took := time.Since(asked)
	if raceEnabled {
		most += time.Second // the race detector slows down the end of a thousand deliveries on a busy machine
	}
	if took > most {
		s.t.Errorf("%s stopped after %v, at most %v are allowed", s.name, took, most)
	}
	s.waitLog("msg=stopped")
	return took
}

// A stop finishes, records and acknowledges the running work, and gives the other deliveries back.
// While a server is unreachable it is in time, too, and loses nothing. Only work that could
// not be recorded, because etcd was unreachable, is done again. Recorded work whose
// acknowledgement was lost is not.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	const ids = 1000
	tests := map[string]struct {
		begin   func(*proxiedEnv)
		noticed string // the log line when the service notices; empty: it does not notice soon
		noEtcd  bool   // the outage prevents records
	}{
		"no outage":             {func(*proxiedEnv) {}, "msg=processed", false},
		"etcd cut off":          {func(b *proxiedEnv) { b.toEtcd.cut() }, "etcd is unreachable", true},
		"etcd frozen":           {func(b *proxiedEnv) { b.must(b.etcdServer.Pause()) }, "", true},
		"broker unreachable":    {func(b *proxiedEnv) { b.toRabbit.cut() }, "not consuming", false},
		"broker's packets lost": {func(b *proxiedEnv) { b.toRabbit.blackhole() }, "", false},
		"both frozen":           {func(b *proxiedEnv) { b.toRabbit.blackhole(); b.must(b.etcdServer.Pause()) }, "", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newProxiedEnv(t)
			var quick atomic.Bool
			receiver := newReceiver(t, func(post) int {
				if !quick.Load() {
					<-time.After(100 * time.Millisecond)
				}
				return http.StatusOK
			})
			vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, "CLAIM_TTL=3s", "CONCURRENCY=16", "SHUTDOWN_TIMEOUT=" + shutdown.String()}
			s := b.start("orders", vars...)
			b.publishBodies("poison") // opens the connection for dead letters, too
			s.waitLog("msg=dead-lettered")
			b.publishBodies(orders("o", ids)...)
			receiver.wait(t, "some work", func(p []post) bool { return len(p) >= 64 })
			tt.begin(b)
			if tt.noticed != "" {
				s.waitLog(tt.noticed)
			} else {
				<-time.After(time.Second)
			}
			took := s.stopWithin(syscall.SIGTERM, shutdown)
			b.must(b.etcdServer.Resume())
			b.toRabbit.restore()
			for _, p := range []*proxy{b.toRabbit, b.toEtcd} {
				p.cut() // drops requests that are still on their way
				p.reconnect()
			}

			keys := b.keys("orders")
			done, claims := len(keys.done()), len(keys.claimed())
			unrecorded := len(receiver.Work("orders")) - done
			if !tt.noEtcd {
				if claims > 0 || unrecorded != 0 {
					t.Errorf("etcd was reachable, but %d claims are left, %d done ids unrecorded", claims, unrecorded)
				}
				s.wantLines(done, "msg=processed")
			}
			if name == "no outage" {
				b.waitDepth("orders-queue", ids-done)
			}
			quick.Store(true)
			next := b.start("orders", vars...)
			eventually(t, "everything done", func() error { return b.allDone("orders", ids) })
			next.stopWithin(syscall.SIGTERM, shutdown)
			lost, twice := receiver.accounts("o", ids)
			if lost > 0 || twice > unrecorded {
				t.Errorf("%d of %d ids were lost, %d done twice, %d could not be recorded", lost, ids, twice, unrecorded)
			}
			t.Logf("stopped in %v; %d claims left, %d done and not recorded, %d done twice, %d lost",
				took.Round(time.Millisecond), claims, unrecorded, twice, lost)
		})
	}
}

// The shortest allowed SHUTDOWN_TIMEOUT is kept even if the broker no longer answers.
func TestStopShortly(t *testing.T) {
	b := newProxiedEnv(t)
	s := b.start("orders", "ENABLE_ETCD=true", "SHUTDOWN_TIMEOUT=1s")
	b.publishBodies("poison")
	s.waitLog("msg=dead-lettered")
	b.toRabbit.blackhole()
	t.Log("stopped in", s.stopWithin(syscall.SIGTERM, time.Second))
}
