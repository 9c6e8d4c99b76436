package e2e

import (
	"fmt"
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

// workers answers posts, each after a while, and counts those in progress.
type workers struct {
	takes   atomic.Int64 // nanoseconds
	running atomic.Int32
}

func newWorkers(takes time.Duration) *workers {
	w := &workers{}
	w.takes.Store(int64(takes))
	return w
}

func (w *workers) answer(post) int {
	w.running.Add(1)
	defer w.running.Add(-1)
	<-time.After(time.Duration(w.takes.Load()))
	return http.StatusOK
}

// A stop under load finishes, records and acknowledges the running work and returns the
// other deliveries to the queue. The next process does nothing again.
func TestStopUnderLoad(t *testing.T) {
	const ids, concurrency = 1500, 16
	e := newEnv(t)
	e.topology("orders")
	e.publishBodies(orders("s", ids)...)
	work := newWorkers(250 * time.Millisecond)
	receiver := newReceiver(t, work.answer)
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, "SHUTDOWN_TIMEOUT=" + shutdown.String()}
	s := e.start("orders", append(vars, fmt.Sprint("CONCURRENCY=", concurrency))...)
	receiver.wait(t, "some work", func(p []post) bool { return len(p) >= 2*concurrency })
	eventually(t, "all slots taken", func() error {
		if work.running.Load() < concurrency {
			return errNotYet
		}
		return nil
	})
	took := s.stopWithin(syscall.SIGTERM, shutdown)

	done := len(receiver.all())
	if running := work.running.Load(); running != 0 {
		t.Errorf("%d handlers ran when the process ended", running)
	}
	if n := s.log.count("msg=processed"); n != done {
		t.Errorf("%d events were done, %d are logged as processed", done, n)
	}
	e.wantAllDone("orders", done) // and no id is claimed
	eventually(t, "the rest back in the queue", func() error {
		if depth := e.depth("orders-queue"); depth != ids-done {
			return fmt.Errorf("%d wait, want %d", depth, ids-done)
		}
		return nil
	})
	t.Logf("stopped in %v: %d done and acknowledged, %d given back", took.Round(time.Millisecond), done, ids-done)

	work.takes.Store(int64(time.Millisecond))
	next := e.start("orders", vars...)
	eventually(t, "everything done", func() error { return e.allDone("orders", ids) })
	next.stopWithin(syscall.SIGTERM, shutdown)
	if n := len(receiver.all()); n != ids {
		t.Errorf("%d posts for %d ids", n, ids)
	}
	e.waitCounts(map[string]int64{"orders_new_order_ok": ids, "orders_new_order_skipped": 0})
}

// A stop while a server is unreachable is in time and loses nothing. Only work that could
// not be recorded, because etcd was unreachable, is done again. Recorded work whose
// acknowledgement was lost is not.
func TestStopDuringOutage(t *testing.T) {
	t.Parallel()
	const ids = 1000
	tests := map[string]struct {
		begin, end func(*proxiedEnv)
		noticed    string // the log line when the service notices; empty: it does not notice soon
		noEtcd     bool   // the outage prevents records
	}{
		"etcd cut off":       {func(b *proxiedEnv) { b.toEtcd.cut() }, func(b *proxiedEnv) { b.toEtcd.reconnect() }, "etcd is unreachable", true},
		"etcd frozen":        {func(b *proxiedEnv) { b.etcdServer.Pause() }, func(b *proxiedEnv) { b.etcdServer.Resume() }, "", true},
		"broker unreachable": {func(b *proxiedEnv) { b.toRabbit.cut() }, func(b *proxiedEnv) { b.toRabbit.reconnect() }, "not consuming", false},
		"broker's packets lost": {
			func(b *proxiedEnv) { b.toRabbit.blackhole() }, func(b *proxiedEnv) { b.toRabbit.restore(); b.toRabbit.cut(); b.toRabbit.reconnect() }, "", false},
		"both frozen": {
			func(b *proxiedEnv) { b.toRabbit.blackhole(); b.etcdServer.Pause() },
			func(b *proxiedEnv) {
				b.etcdServer.Resume()
				b.toRabbit.restore()
				b.toRabbit.cut()
				b.toRabbit.reconnect()
			}, "", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newProxiedEnv(t)
			work := newWorkers(100 * time.Millisecond)
			receiver := newReceiver(t, work.answer)
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
			tt.end(b)
			b.toEtcd.Stop() // drops requests that are still on their way
			b.toEtcd.reconnect()

			keys := b.keys("orders")
			done, claims := len(keys.done()), len(keys.claimed())
			unrecorded := len(receiver.work()) - done
			if !tt.noEtcd && (claims > 0 || unrecorded != 0) {
				t.Errorf("etcd was reachable, but %d claims are left, %d done ids unrecorded", claims, unrecorded)
			}
			work.takes.Store(int64(time.Millisecond))
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

// A stop takes no longer than the default SHUTDOWN_TIMEOUT when neither etcd nor the
// broker answers any more and work waits to be recorded.
func TestStopWithoutAnswers(t *testing.T) {
	const most = 15 * time.Second
	b := newProxiedEnv(t)
	b.amqpURL += "?heartbeat=60" // so that the connections outlast the stop
	began, finish := make(chan post, 1), make(chan struct{})
	receiver := newReceiver(t, func(p post) int { began <- p; <-finish; return http.StatusOK })
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL)
	b.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLog("msg=dead-lettered")
	b.publishBodies(orders("o", 1)...)
	<-began
	b.must(b.etcdServer.Pause())
	b.toRabbit.blackhole()
	close(finish)
	t.Log("stopped in", s.stopWithin(syscall.SIGTERM, most).Round(time.Millisecond))
}
