package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
)

// A host dies without a word, and another takes its place: the idle connections
// drop what is sent, new ones work. That costs an event one attempt at most,
// because the first that fails has all idle connections dropped.
func TestWebhookHostDiesSilently(t *testing.T) {
	const events, later = 16, 4
	b := newProxiedEnv(t)
	together := newBarrier(events)
	receiver := newReceiver(t, func(p post) int {
		if p.ID[0] == 'w' {
			together.wait() // so that there are as many connections
		}
		return http.StatusOK
	})
	host := newHost(t, receiver.Listener.Addr().String())
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

// host forwards connections until it dies: then it drops what comes on those
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
