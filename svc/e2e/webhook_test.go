package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A proxy accepts and closes while its backend is down. That is an outage: no event
// counts an attempt, changes its token or is dead-lettered, however long it takes.
func TestWebhookConnectionLost(t *testing.T) {
	const events = 10
	tests := map[string]func(http.ResponseWriter, *http.Request){
		"at once": func(w http.ResponseWriter, _ *http.Request) { hijack(w).Close() },
		"after half of an answer": func(w http.ResponseWriter, _ *http.Request) {
			conn := hijack(w)
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Le")
			conn.Close()
		},
		"by a reset": func(w http.ResponseWriter, _ *http.Request) {
			conn := hijack(w)
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		},
	}
	for name, lose := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBrink(t)
			var down atomic.Bool
			down.Store(true)
			sink := newSink(t, nil)
			sink.Config.Handler = losing(sink.Config.Handler, &down, lose)
			s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+sink.URL, "MAX_ATTEMPTS=1")
			b.publishBodies(orders("lost", events)...)
			s.waitLogs(events, "event retried without an answer", "times=10", "hint=")
			down.Store(false)
			s.waitLogs(events, "msg=processed")
			s.stop()
			for _, p := range sink.all() {
				if p.attempt != 1 {
					t.Errorf("%s was posted as attempt %d", p.id, p.attempt)
				}
			}
			if lost, twice := sink.accounts("lost", events); lost+twice > 0 {
				t.Errorf("%d events were lost, %d done under two tokens", lost, twice)
			}
			if n := s.log.count("the webhook is unreachable"); n != 1 {
				t.Errorf("the outage is logged %d times", n)
			}
			b.waitCounts(map[string]int64{"orders_new_order_ok": events, "orders_new_order_failed": 0})
		})
	}
}

// A stop does not wait for a webhook that loses its connections: the event is
// delivered again to the next process.
func TestStopWhileWebhookConnectionsAreLost(t *testing.T) {
	b := newBrink(t)
	var down atomic.Bool
	down.Store(true)
	sink := newSink(t, nil)
	sink.Config.Handler = losing(sink.Config.Handler, &down, func(w http.ResponseWriter, _ *http.Request) { hijack(w).Close() })
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + sink.URL, "SHUTDOWN_TIMEOUT=" + shutdown.String()}
	s := b.start("orders", vars...)
	b.publishBodies(orders("lost", 1)...)
	s.waitLog("the webhook is unreachable")
	s.stopWithin(syscall.SIGTERM, shutdown)
	down.Store(false)
	s = b.start("orders", vars...)
	s.waitLog("msg=processed", "id=lost0")
	s.stop()
}

// hijack takes the connection of a request over.
func hijack(w http.ResponseWriter) net.Conn {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	return conn
}

// losing is a handler that loses its connections while down is true.
func losing(up http.Handler, down *atomic.Bool, lose http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			lose(w, r)
			return
		}
		up.ServeHTTP(w, r)
	})
}

// A host dies without a word, and another takes its place: the idle connections
// swallow what is sent, new ones work. That costs an event one attempt at most,
// because the first that fails has all idle connections dropped.
func TestWebhookHostDiesSilently(t *testing.T) {
	const events, later = 16, 4
	b := newBrink(t)
	together := newBarrier(events)
	sink := newSink(t, func(p post) int {
		if p.id[0] == 'w' {
			together.wait() // so that there are as many connections
		}
		return http.StatusOK
	})
	host := newHost(t, sink.Listener.Addr().String())
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL=http://"+host.Addr().String(), "HANDLER_TIMEOUT=2s", "MAX_ATTEMPTS=2", fmt.Sprint("CONCURRENCY=", events))
	b.publishBodies(orders("warm", events)...)
	s.waitLogs(events, "msg=processed")
	host.die()
	b.publishBodies(orders("later", later)...)
	s.waitLogs(later, "id=later")
	s.stop()
	b.waitCounts(map[string]int64{"orders_new_order_ok": events + later, "orders_new_order_failed": 0})
}

// barrier lets n callers through when all of them have come.
type barrier struct {
	sync.WaitGroup
}

func newBarrier(n int) *barrier {
	b := &barrier{}
	b.Add(n)
	return b
}

func (b *barrier) wait() {
	b.Done()
	b.Wait()
}

// host forwards connections until it dies: then it swallows what comes on those
// that it has, and forwards new ones.
type host struct {
	net.Listener
	mu    sync.Mutex
	alive chan struct{} // of the connections of now; closed when they die
}

func newHost(t *testing.T, upstream string) *host {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Listener: listener, alive: make(chan struct{})}
	var forwards sync.WaitGroup
	forwards.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			dead := h.alive
			h.mu.Unlock()
			up, err := net.Dial("tcp", upstream)
			if err != nil {
				conn.Close()
				continue
			}
			t.Cleanup(func() { conn.Close(); up.Close() })
			forwards.Go(func() { forward(up, conn, dead) })
			forwards.Go(func() { forward(conn, up, dead) })
		}
	})
	t.Cleanup(func() { listener.Close() })
	return h
}

// forward copies from one connection to another, and drops what comes after dead is
// closed.
func forward(to, from net.Conn, dead <-chan struct{}) {
	buffer := make([]byte, 1<<16)
	for r := bufio.NewReader(from); ; {
		n, err := r.Read(buffer)
		select {
		case <-dead:
			if err != nil {
				return
			}
			continue
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		to.Write(buffer[:n])
	}
}

func (h *host) die() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.alive)
	h.alive = make(chan struct{})
}

// Each handler keeps its connection.
func TestWebhookKeepsConnections(t *testing.T) {
	const concurrency, rounds = 300, 3
	b := newBrink(t)
	var together [rounds]*barrier
	for i := range together {
		together[i] = newBarrier(concurrency)
	}
	var posts, conns atomic.Int32
	sink := newSink(t, func(post) int {
		together[(posts.Add(1)-1)/concurrency].wait()
		return http.StatusOK
	})
	sink.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s := b.start("orders", "WEBHOOK_URL="+sink.URL, fmt.Sprint("CONCURRENCY=", concurrency))
	for round := range rounds {
		b.publishBodies(orders(fmt.Sprint("r", round, "-"), concurrency)...)
		s.waitLogs((round+1)*concurrency, "msg=processed")
	}
	s.stop()
	if n := conns.Load(); n > concurrency {
		t.Errorf("%d connections for %d handlers", n, concurrency)
	}
}

// fencing is a receiver that refuses a token older than one that it has seen.
type fencing struct {
	mu     sync.Mutex
	newest map[string]int64
	status int
}

func (f *fencing) refuses(p post) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.newest == nil {
		f.newest = make(map[string]int64)
	}
	f.newest[p.id] = max(f.newest[p.id], p.token)
	return p.token < f.newest[p.id]
}

// A replica is cut off from etcd and loses its claim without knowing. Its receiver,
// which has seen the newer token of another replica, refuses its own: it finds out
// that the claim has gone, and skips the event instead of dead-lettering it.
func TestWebhookRefusesAnOlderToken(t *testing.T) {
	for _, status := range []int{http.StatusConflict, http.StatusPreconditionFailed} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			b := newBrink(t)
			var receiver fencing
			var first atomic.Int64 // the token of the replica that is cut off
			sink := newSink(t, func(p post) int {
				first.CompareAndSwap(0, p.token)
				switch {
				case receiver.refuses(p):
					return status
				case p.token == first.Load():
					return http.StatusServiceUnavailable // so that it is posted again
				}
				return http.StatusOK
			})
			vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + sink.URL, "CLAIM_TTL=60s", "PREFETCH=1", "HANDLER_TIMEOUT=10s"}
			cutOff := b.start("orders", vars...)
			cutOff.waitLog("msg=consuming")
			b.publishBodies(orders("f", 1)...)
			sink.wait(t, "the first post", func(posts []post) bool { return len(posts) > 0 })
			other := b.start("orders", append(vars, "ETCD_ENDPOINTS="+b.etcdServer.Endpoint())...)
			other.waitLog("msg=consuming")
			b.publishBodies(orders("f", 1)...) // the first replica has all that it may hold

			sessions := b.sessions("orders")
			b.toEtcd.cut()
			for key, lease := range sessions {
				if claims, err := b.etcd.Get(t.Context(), "/service/orders/claim/"+key, clientv3.WithPrefix()); err != nil {
					t.Fatal(err)
				} else if claims.Count > 0 && claims.Kvs[0].CreateRevision == first.Load() {
					_, err := b.etcd.Revoke(t.Context(), lease)
					b.must(err)
				}
			}
			other.waitLog("msg=processed", "id=f0")
			sink.wait(t, "a refusal", func(posts []post) bool { return posts[len(posts)-1].status == status })
			b.toEtcd.mend()
			cutOff.waitLog("msg=skipped", "id=f0")
			cutOff.stop()
			other.stop()
			b.waitCounts(map[string]int64{"orders_new_order_ok": 1, "orders_new_order_skipped": 1, "orders_new_order_failed": 0})
			if letters := b.deadLetters("orders"); len(letters) > 0 {
				t.Errorf("dead-lettered: %v", letters)
			}
		})
	}
}

// sessions returns the leases of a role's sessions by name.
func (e *env) sessions(role string) map[string]clientv3.LeaseID {
	e.t.Helper()
	prefix := "/service/" + role + "/session/"
	resp, err := e.etcd.Get(e.t.Context(), prefix, clientv3.WithPrefix())
	e.must(err)
	sessions := make(map[string]clientv3.LeaseID)
	for _, kv := range resp.Kvs {
		sessions[string(kv.Key[len(prefix):])] = clientv3.LeaseID(kv.Lease)
	}
	return sessions
}

// A final failure is dead-lettered when the claim is known to be still ours, not
// while etcd is unreachable.
func TestFinalFailureWaitsForEtcd(t *testing.T) {
	b := newBrink(t)
	answer := make(chan int)
	sink := newSink(t, func(post) int { return <-answer })
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+sink.URL, "CLAIM_TTL=60s")
	s.waitLog("msg=consuming")
	b.publishBodies(orders("f", 1)...)
	b.waitClaimed("orders")
	b.toEtcd.cut()
	answer <- http.StatusPreconditionFailed
	s.waitLog("etcd is unreachable")
	if n := s.log.count("dead-lettered"); n > 0 {
		t.Error("it was dead-lettered while nobody could say whose the claim is")
	}
	b.toEtcd.mend()
	s.waitLog("msg=dead-lettered", "reason=failed", "412")
	s.stop()
	if letters := b.deadLetters("orders"); len(letters) != 1 || letters[0].Headers["x-attempts"] != int32(1) {
		t.Errorf("dead letters: %v", letters)
	}
}

// waitClaimed waits for the first claim of a role.
func (e *env) waitClaimed(role string) {
	e.t.Helper()
	eventually(e.t, "a claim", func() error {
		resp, err := e.etcd.Get(e.t.Context(), "/service/"+role+"/claim/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if resp.Count == 0 {
			return errNotYet
		}
		return nil
	})
}
