package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/stack"
)

// proxiedEnv is an env with breakable connections to its servers. It has a virtual host
// of its own on the shared broker, behind a proxy, and an etcd of its own, which tests
// can freeze.
type proxiedEnv struct {
	*env
	etcdServer       *stack.Etcd
	toRabbit, toEtcd *proxy
}

func newProxiedEnv(t *testing.T) *proxiedEnv {
	t.Helper()
	return newProxiedEnvWith(t, stack.EtcdOptions{})
}

func newProxiedEnvWith(t *testing.T, o stack.EtcdOptions) *proxiedEnv {
	t.Helper()
	etcd := startMembers(t, 1, o)[0]
	vhost := newVhost(t)
	b := &proxiedEnv{env: newEnvOn(t, shared.rabbit.URL()+vhost, etcd), etcdServer: etcd}
	b.toRabbit = newProxy(t, fmt.Sprintf("127.0.0.1:%d", shared.rabbit.Port()))
	b.toEtcd = newProxy(t, etcd.Endpoint())
	b.amqpURL, b.etcdEndpoints = "amqp://guest:guest@"+b.toRabbit.Listen+"/"+vhost, b.toEtcd.Listen
	b.topology("orders")
	return b
}

var vhosts struct {
	sync.Mutex
	made int
	free []string
}

// newVhost returns an unused virtual host. It makes a dozen at a time, because each
// call of rabbitmqctl takes a second.
func newVhost(t *testing.T) string {
	t.Helper()
	vhosts.Lock()
	defer vhosts.Unlock()
	if len(vhosts.free) == 0 {
		var erlang strings.Builder
		for range 12 {
			vhosts.made++
			name := fmt.Sprint("test", vhosts.made)
			vhosts.free = append(vhosts.free, name)
			fmt.Fprintf(&erlang, "rabbit_vhost:add(<<%q>>, <<\"test\">>), "+
				"rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<%q>>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>), ", name, name)
		}
		if _, err := shared.rabbit.Ctl(t.Context(), "eval", erlang.String()+"ok."); err != nil {
			t.Fatal(err)
		}
	}
	last := len(vhosts.free) - 1
	name := vhosts.free[last]
	vhosts.free = vhosts.free[:last]
	return name
}

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
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
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
			took := s.stopWithin(sig, shutdown)

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
			next.stopWithin(sig, shutdown)
			if n := len(receiver.all()); n != ids {
				t.Errorf("%d posts for %d ids", n, ids)
			}
			e.waitCounts(map[string]int64{"orders_new_order_ok": ids, "orders_new_order_skipped": 0})
		})
	}
}

// A stop while a server is unreachable is in time and loses nothing. Only work that could
// not be recorded, because etcd was unreachable, is done again. Recorded work whose
// acknowledgement was lost is not.
func TestStopDuringOutage(t *testing.T) {
	const ids = 1000
	broker := "no connection to the broker"
	tests := map[string]struct {
		begin, end func(*proxiedEnv)
		noticed    string // the log line when the service notices; empty: it does not notice soon
		noEtcd     bool   // the outage prevents records
	}{
		"etcd cut off": {func(b *proxiedEnv) { b.toEtcd.cut() }, func(b *proxiedEnv) { b.toEtcd.reconnect() }, "etcd is unreachable", true},
		"etcd killed":  {func(b *proxiedEnv) { b.etcdServer.Kill() }, func(b *proxiedEnv) { b.etcdServer.Start(b.t.Context()) }, "etcd is unreachable", true},
		"etcd frozen":  {func(b *proxiedEnv) { b.etcdServer.Pause() }, func(b *proxiedEnv) { b.etcdServer.Resume() }, "", true},
		"etcd's packets lost": {
			func(b *proxiedEnv) { b.toEtcd.blackhole() }, func(b *proxiedEnv) { b.toEtcd.restore(); b.toEtcd.cut(); b.toEtcd.reconnect() }, "", true},
		"broker away": {func(b *proxiedEnv) { b.toRabbit.cut() }, func(b *proxiedEnv) { b.toRabbit.reconnect() }, broker, false},
		"broker's packets lost": {
			func(b *proxiedEnv) { b.toRabbit.blackhole() }, func(b *proxiedEnv) { b.toRabbit.restore(); b.toRabbit.cut(); b.toRabbit.reconnect() }, "", false},
		"both cut off": {
			func(b *proxiedEnv) { b.toRabbit.cut(); b.toEtcd.cut() }, func(b *proxiedEnv) { b.toRabbit.reconnect(); b.toEtcd.reconnect() }, broker, true},
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

// silence accepts connections and never sends anything.
type silence struct {
	net.Listener
	accepted chan struct{} // closed at the first connection
}

func newSilence(t *testing.T) *silence {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &silence{l, make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			if len(conns) == 0 {
				close(s.accepted)
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return s
}

// A stop is in time before the service has connected to anything.
func TestStopBeforeTheFirstConnection(t *testing.T) {
	const unusedAddr = "127.0.0.1:1"
	tests := map[string]struct {
		vars   []string
		silent string // the variable that gets the address of a silent listener
		log    string // the log line before the stop; empty: stop after a connection to the silent listener
	}{
		"no broker":             {[]string{"AMQP_URL=amqp://" + unusedAddr + "/"}, "", "no connection to the broker"},
		"no broker, etcd":       {[]string{"AMQP_URL=amqp://" + unusedAddr + "/", "ENABLE_ETCD=true"}, "", "no connection to the broker"},
		"broker without a host": {[]string{"AMQP_URL=amqp://nowhere.invalid/"}, "", "no connection to the broker"},
		"silent broker":         {nil, "AMQP_URL", ""},
		"silent broker, etcd":   {[]string{"ENABLE_ETCD=true"}, "AMQP_URL", ""},
		"no etcd":               {[]string{"ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true"}, "", "etcd is unreachable"},
		"etcd without a host":   {[]string{"ETCD_ENDPOINTS=nowhere.invalid:2379", "ENABLE_ETCD=true"}, "", "etcd is unreachable"},
		"silent etcd":           {[]string{"ENABLE_ETCD=true"}, "ETCD_ENDPOINTS", ""},
		"no etcd with users":    {[]string{"ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"}, "", "msg=starting"},
		"silent etcd with users": {
			[]string{"ENABLE_ETCD=true", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"}, "ETCD_ENDPOINTS", ""},
		"nothing at all": {[]string{"AMQP_URL=amqp://" + unusedAddr + "/", "ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true", "STATSD_ADDR=nowhere.invalid:8125"}, "", "etcd is unreachable"},
	}
	for name, tt := range tests {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(name+"/"+sig.String(), func(t *testing.T) {
				t.Parallel() // it shares nothing that it changes, and does little
				vars := tt.vars
				silence := newSilence(t)
				if tt.silent != "" {
					addr := silence.Addr().String()
					if tt.silent == "AMQP_URL" {
						addr = "amqp://" + addr + "/"
					}
					vars = append(vars[:len(vars):len(vars)], tt.silent+"="+addr)
				}
				statsd, err := stack.StartStatsd()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { statsd.Close() })
				e := &env{t: t, amqpURL: shared.rabbit.URL(), etcdEndpoints: shared.etcd.Endpoint(), statsd: statsd}
				s := e.start("orders", append([]string{"SHUTDOWN_TIMEOUT=" + shutdown.String()}, vars...)...)
				if tt.log != "" {
					s.waitLog(tt.log)
				} else {
					select {
					case <-silence.accepted:
					case <-time.After(maxWait):
						t.Fatal("the service does not connect")
					}
				}
				t.Log("stopped in", s.stopWithin(sig, shutdown).Round(time.Millisecond))
				if n := s.log.count("msg=consuming"); n > 0 {
					t.Error("the service consumed")
				}
			})
		}
	}
}

// A stop during the warm-up is in time.
func TestStopDuringWarmup(t *testing.T) {
	const ids = 32000 // seven pages
	b := newProxiedEnv(t)
	b.must(fillRecords(deadline(t), b.etcd, ids, 1))
	slowly := func(t *testing.T) string {
		p := newProxy(t, b.etcdServer.Endpoint())
		p.delay(900) // each page
		return p.Listen
	}
	t.Run("slow", func(t *testing.T) {
		s := b.start("orders", "ENABLE_ETCD=true", "ETCD_ENDPOINTS="+slowly(t), "SHUTDOWN_TIMEOUT="+shutdown.String())
		s.waitLog(`msg="reading the processed ids"`) // logged when the warm-up takes long
		t.Log("stopped in", s.stopWithin(syscall.SIGTERM, shutdown).Round(time.Millisecond))
		if s.log.count("cache warmed")+s.log.count("msg=consuming") > 0 {
			t.Error("the warm-up was over before the stop")
		}
	})
	t.Run("frozen", func(t *testing.T) {
		s := b.start("orders", "ENABLE_ETCD=true", "ETCD_ENDPOINTS="+slowly(t), "SHUTDOWN_TIMEOUT="+shutdown.String(), "HEALTH_ADDR=127.0.0.1:0")
		s.waitReady("broker", "consumer", "cache") // etcd has answered
		b.etcdServer.Pause()
		t.Log("stopped in", s.stopWithin(syscall.SIGINT, shutdown).Round(time.Millisecond))
		b.etcdServer.Resume()
	})
	// Without a stop the warm-up reads all records.
	s := b.start("orders", "ENABLE_ETCD=true")
	s.waitLog(`msg="cache warmed"`, fmt.Sprint("ids=", ids))
	s.stop()
}

// newHang returns a receiver that answers no post until the end of the test. began
// receives every post.
func newHang(t *testing.T) (receiver *receiver, began chan post) {
	release, began := make(chan struct{}), make(chan post, 1000)
	receiver = newReceiver(t, func(p post) int {
		began <- p
		<-release
		return http.StatusTeapot
	})
	t.Cleanup(func() { close(release) })
	return receiver, began
}

// A handler that does not finish is cancelled in time for a clean exit. Its claim is
// released, so the next process handles its event at once.
func TestStopWithHangingHandler(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver, began := newHang(t)
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT="+shutdown.String())
	e.publishBodies(orders("h", 3)...)
	for range 3 {
		<-began
	}
	took := s.stopWithin(syscall.SIGTERM, shutdown)
	if took < shutdown/2 {
		t.Errorf("stopped after %v: the handlers had no time to finish", took)
	}
	e.wantAllDone("orders", 0) // and no id is claimed
	t.Log("stopped in", took.Round(time.Millisecond))
	next := e.start("orders", "ENABLE_ETCD=true", "CLAIM_TTL=60s")
	next.waitLogs(3, "msg=processed")
	if n := max(0, e.depth("orders-queue.dead")); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	next.stop()
}

// A second signal ends the process at once.
func TestSecondSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			e := newEnv(t)
			e.topology("orders")
			receiver, began := newHang(t)
			s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT=50s")
			e.publishBodies(orders("2nd", 1)...)
			<-began
			s.signal(sig)
			select {
			case <-s.exited:
				t.Fatal("the first signal ended the process at once")
			case <-time.After(time.Second):
			}
			asked := time.Now()
			s.signal(sig)
			select {
			case <-s.exited:
			case <-time.After(5 * time.Second):
				t.Fatal("the process does not end")
			}
			took := time.Since(asked)
			if status := s.cmd.ProcessState.Sys().(syscall.WaitStatus); took > time.Second || !status.Signaled() || status.Signal() != sig {
				t.Errorf("the process ended after %v: %v", took, s.cmd.ProcessState)
			}
			t.Logf("ended after %v: %v", took.Round(time.Millisecond), s.cmd.ProcessState)
		})
	}
}
