package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The service waits for a broker that is down at its start. It warns once, and logs each
// attempt at level debug.
func TestLateBroker(t *testing.T) {
	b := newProxiedEnv(t)
	b.publishBodies(orders("late", 3)...)
	b.toRabbit.cut()
	s := b.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=debug")
	s.waitLog("level=WARN", "not consuming", "connection refused", "retry_in=", "host and port in AMQP_URL")
	s.waitLogs(3, "level=DEBUG", "connecting again", "connection refused", "retry_in=")
	s.alive()
	tries := s.log.count("connecting again")
	b.toRabbit.reconnect()
	back := time.Now()
	s.waitLog("msg=consuming")
	took := time.Since(back)
	if took > 5*time.Second { // the longest pause is 4.5 s: 3 s and a jitter of up to half of it
		t.Errorf("the service consumes only %v after the broker became reachable", took)
	}
	s.waitLogs(3, "msg=processed")
	if n := s.log.count("connecting again"); n > tries+1 {
		t.Errorf("%d failed tries, %d of them before the broker became reachable", n, tries)
	}
	if n := s.log.count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
	t.Logf("%d tries, consuming %v after the broker came", tries, took.Round(time.Millisecond))
	s.stop()
}

// The service waits for an etcd that is unreachable at its start before it consumes, and
// logs that once.
func TestLateEtcd(t *testing.T) {
	b := newProxiedEnv(t)
	b.publishBodies(orders("late", 3)...)
	b.toEtcd.cut()
	s := b.start("orders", "ENABLE_ETCD=true")
	s.waitLog("level=WARN", "etcd is unreachable")
	cpu := s.cpu()
	<-time.After(3 * time.Second)
	if used := s.cpu() - cpu; used > 300*time.Millisecond {
		t.Errorf("%v of CPU in 3 s of waiting", used)
	}
	s.alive()
	if n := s.log.count("msg=consuming"); n > 0 {
		t.Error("the service consumes without etcd")
	}
	b.toEtcd.reconnect()
	back := time.Now()
	s.waitLog("msg=consuming")
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("the service consumes only %v after etcd became reachable", took)
	}
	s.waitLogs(3, "msg=processed")
	if unreachable, back := s.log.count("etcd is unreachable"), s.log.count("etcd is reachable again"); unreachable != 1 || back != 1 {
		t.Errorf("the log says %d times that etcd is unreachable and %d times that it is back", unreachable, back)
	}
	s.stop()
}

// listen starts a new statsd at an address.
func (e *env) listen(addr string) {
	e.t.Helper()
	statsd, err := stack.StartStatsdAt(addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { statsd.Close() })
	e.statsd = statsd
}

// Compaction and defragmentation of etcd under load end no session and lose nothing.
func TestCompaction(t *testing.T) {
	w := newFaultEnv(t)
	w.publishSteadily()
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	for range 10 {
		w.progress(100)
		resp, err := w.etcd.Get(ctx, "/", clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.etcd.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.etcd.Defragment(ctx, w.etcdServer.Endpoint()); err != nil {
			t.Fatal(err)
		}
	}
	w.progress(100)
	w.finish()
	w.wantLog(0, 0, "session lost")
	w.wantLog(0, 0, "etcd is unreachable")
}

// With authentication in etcd every call carries an authentication token. The service
// renews tokens that have expired or that a restart of etcd has invalidated.
func TestEtcdTokens(t *testing.T) {
	b := newProxiedEnvWith(t, stack.EtcdOptions{Config: map[string]any{"auth-token-ttl": 1, "bcrypt-cost": 4}})
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	b.demandUsers(ctx, "orders")

	s := b.start("orders", "ENABLE_ETCD=true", "CLAIM_TTL=2s", "ETCD_USERNAME=orders", "ETCD_PASSWORD=s3cret")
	s.waitLog("msg=consuming")
	<-time.After(4 * time.Second) // longer than the life of a token, and of a lease without renewals
	b.publishBodies(orders("idle", 20)...)
	s.waitLogs(20, "msg=processed", "id=idle")
	if n := s.log.count("level=WARN") + s.log.count("level=ERROR"); n > 0 {
		t.Errorf("%d warnings before the restart:\n%s", n, s.log.tail(20))
	}
	b.must(b.etcdServer.Kill())
	b.publishBodies(orders("away", 20)...)
	b.must(b.etcdServer.Start(ctx))
	back := time.Now()
	s.waitLogs(20, "msg=processed", "id=away")
	took := time.Since(back)
	if took > 2*time.Second {
		t.Errorf("the work continued only %v after etcd became reachable", took)
	}
	t.Logf("work goes on %v after etcd is back", took.Round(time.Millisecond))
	s.stop()
	b.wantAllDone("orders", 40)
}
