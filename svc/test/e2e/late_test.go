package e2e

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
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

// A proxy that accepts connections and resets them, because the broker behind it is down,
// is logged once, too.
func TestLateBrokerBehindProxy(t *testing.T) {
	e, _ := newBroker(t)
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	e.must(err)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := proxy.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1))
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	})
	t.Cleanup(func() { proxy.Close(); accepting.Wait() })
	s := e.start("orders", "LOG_LEVEL=debug", "AMQP_URL=amqp://"+proxy.Addr().String())
	s.waitLog("level=WARN", "not consuming", "hint=", "down behind a proxy")
	s.waitLogs(3, "level=DEBUG", "connecting again")
	if n := s.log.count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
	s.stop()
}

// The service works when one of several brokers is reachable.
func TestLateBrokerOfTwo(t *testing.T) {
	b := newProxiedEnv(t)
	b.amqpURL = "amqp://127.0.0.1:1/," + b.amqpURL
	b.toRabbit.cut()
	s := b.start("orders", "LOG_LEVEL=debug")
	s.waitLogs(2, "connecting again")
	b.toRabbit.reconnect()
	s.waitLog("msg=consuming", "broker="+b.toRabbit.Listen)
	s.stop()
}

// The service waits for an etcd that is unreachable at its start before it consumes, and
// logs that once.
func TestLateEtcd(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		begin, end func(*proxiedEnv)
		within     time.Duration
	}{
		"refused": {func(b *proxiedEnv) { b.toEtcd.cut() }, func(b *proxiedEnv) { b.toEtcd.reconnect() }, 2 * time.Second},
		"frozen":  {func(b *proxiedEnv) { b.etcdServer.Pause() }, func(b *proxiedEnv) { b.etcdServer.Resume() }, 2 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newProxiedEnv(t)
			b.publishBodies(orders("late", 3)...)
			tt.begin(b)
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
			tt.end(b)
			back := time.Now()
			s.waitLog("msg=consuming")
			took := time.Since(back)
			if took > tt.within {
				t.Errorf("the service consumes only %v after etcd became reachable", took)
			}
			s.waitLogs(3, "msg=processed")
			if unreachable, back := s.log.count("etcd is unreachable"), s.log.count("etcd is reachable again"); unreachable != 1 || back != 1 {
				t.Errorf("the log says %d times that etcd is unreachable and %d times that it is back", unreachable, back)
			}
			t.Logf("consuming %v after etcd came", took.Round(time.Millisecond))
			s.stop()
		})
	}
}

// Without ENABLE_ETCD the service needs no etcd.
func TestNoEtcdNeeded(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ETCD_ENDPOINTS=127.0.0.1:1")
	s.waitLog("msg=consuming")
	e.publishBodies(`{"type":"new_order"}`)
	s.waitLog("msg=processed")
	s.stop()
	if n := s.log.count("etcd is unreachable"); n > 0 {
		t.Error("the service looks for etcd")
	}
}

// At the start all servers are unreachable. They become reachable one by one.
func TestLateEverything(t *testing.T) {
	b := newProxiedEnv(t)
	b.publishBodies(orders("late", 3)...)
	b.toEtcd.cut()
	b.toRabbit.cut()
	addr := b.statsd.Addr()
	b.statsd.Close()
	s := b.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=debug")
	s.waitLog("etcd is unreachable")
	b.toEtcd.reconnect()
	s.waitLog(`msg="cache warmed"`)
	s.waitLogs(2, "connecting again")
	b.toRabbit.reconnect()
	s.waitLogs(3, "msg=processed")
	b.listen(addr)
	b.publishBodies(orders("more", 3)...)
	b.waitAtLeast("orders_new_order_ok", 3)
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

// waitAtLeast waits until a counter at statsd is at least n. Counts that were sent while
// statsd was down may be lost, because statsd does not confirm packets.
func (e *env) waitAtLeast(name string, n int64) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	if err := e.statsd.Wait(ctx, func(counts map[string]int64) bool { return counts[name] >= n }); err != nil {
		e.t.Fatalf("counters are %v, want %d of %s", e.statsd.Counts(), n, name)
	}
}

// A statsd that is down, starts, and stops again affects only the counts.
func TestLateStatsd(t *testing.T) {
	e := newEnv(t)
	addr := e.statsd.Addr()
	e.statsd.Close()
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	for round := range 3 {
		e.publishBodies(orders(fmt.Sprint("without", round, "-"), 50)...)
		s.waitLogs(50, "msg=processed", fmt.Sprint("id=without", round, "-"))
		e.listen(addr)
		e.publishBodies(orders(fmt.Sprint("with", round, "-"), 50)...)
		e.waitAtLeast("orders_new_order_ok", 50)
		e.statsd.Close()
	}
	s.stop()
	if n := s.log.count("level=WARN") + s.log.count("level=ERROR"); n > 0 {
		t.Errorf("%d warnings:\n%s", n, s.log.tail(20))
	}
}

// A statsd whose name cannot be resolved delays neither the work nor the stop.
func TestUnresolvableStatsd(t *testing.T) {
	const ids = 2000
	e := newProxiedEnv(t)
	e.publishBodies(orders("u", ids)...)
	s := e.start("orders", "ENABLE_ETCD=true", "STATSD_ADDR=nowhere.invalid:8125")
	began := time.Now()
	s.waitLogs(ids, "msg=processed")
	took := time.Since(began)
	s.waitLog("level=WARN", "statsd is unreachable", "STATSD_ADDR")
	<-time.After(6 * time.Second) // the name is looked up again, but not logged again
	if n := s.log.count("statsd is unreachable"); n != 1 {
		t.Errorf("the log says %d times that statsd is unreachable, want once", n)
	}
	t.Logf("%d events in %v, stopped in %v", ids, took.Round(time.Millisecond), s.stopWithin(syscall.SIGTERM, 2*time.Second).Round(time.Millisecond))
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
	for round := range 3 {
		// This is longer than the life of a token, and of a lease without renewals.
		<-time.After(4 * time.Second)
		b.publishBodies(orders(fmt.Sprint("idle", round, "-"), 20)...)
		s.waitLogs(20, "msg=processed", fmt.Sprint("id=idle", round, "-"))
	}
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
	b.wantAllDone("orders", 80)
}
