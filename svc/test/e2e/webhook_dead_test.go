package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
)

// The webhook's host dies without closing its connections, and another host takes its
// place: idle connections drop all data, new connections work. Each event loses at most
// one attempt, because the first failure closes all idle connections.
func TestWebhookHostDiesSilently(t *testing.T) {
	const events, later = 16, 4
	b := newProxiedEnv(t)
	together := newBarrier(events)
	receiver := newReceiver(t, func(p post) int {
		if p.ID[0] == 'w' {
			together.wait() // so that each event gets its own connection
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

// barrier blocks n callers until all of them have called wait.
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

// host forwards connections. When it dies, it drops all data on the existing connections;
// new connections are forwarded.
type host struct {
	net.Listener
	mu    sync.Mutex
	alive chan struct{} // belongs to the present connections; closed when they die
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

// forward copies from one connection to another. After dead is closed, it drops the data.
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
