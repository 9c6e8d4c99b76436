package webhook

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A host that moves is followed, although its old address still answers and its connections
// are never idle, and no post is lost on the way. The old connections are closed.
func TestHostMoves(t *testing.T) {
	const work, span = 3 * time.Second, 5 * time.Minute // of a post, and of the test
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var moved atomic.Bool
				began := time.Now()
				last := [2]time.Duration{} // the begin of the last post at the old and at the new address
				var mu sync.Mutex
				var addresses [2]*pipeListener
				for i := range addresses {
					addresses[i] = newPipeListener()
					server := httptest.Server{Listener: addresses[i], EnableHTTP2: http2, Config: &http.Server{
						Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
							if (r.ProtoMajor == 2) != http2 {
								t.Errorf("got %s", r.Proto)
							}
							mu.Lock()
							last[i] = time.Since(began)
							mu.Unlock()
							<-time.After(work)
						}),
					}}
					server.StartTLS()
					defer server.Close()
				}
				p := New("https://127.0.0.1", "", 4)
				p.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				p.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
					if moved.Load() {
						return addresses[1].dial()
					}
					return addresses[0].dial()
				}
				time.AfterFunc(maxAge/2, func() { moved.Store(true) })
				var posts sync.WaitGroup
				for i := range 2 { // each begins in the middle of the other's posts
					posts.Go(func() {
						<-time.After(time.Duration(i) * work / 2)
						for time.Since(began) < span {
							if err := p.Handle(t.Context(), order("1")); err != nil {
								t.Error(err)
							}
						}
					})
				}
				posts.Wait()
				if last[0] > maxAge+work || last[1] < span-work {
					t.Errorf("the last post at the old address began after %v, at the new one after %v", last[0], last[1])
				}
				if n := addresses[0].open.Load(); n != 0 {
					t.Errorf("%d connections to the old address are open", n)
				}
				p.Close()
			})
		})
	}
}

// pipeListener listens for connections within the test's bubble.
type pipeListener struct {
	conns chan net.Conn
	open  atomic.Int64 // connections that the dialer has not closed
	net.Listener
	end    chan struct{}
	closed sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), end: make(chan struct{})}
}

func (l *pipeListener) dial() (net.Conn, error) {
	client, server := net.Pipe()
	l.conns <- server
	l.open.Add(1)
	return &counted{Conn: client, open: &l.open}, nil
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

func (l *pipeListener) Close() error {
	l.closed.Do(func() { close(l.end) })
	return nil
}

// counted is a connection that counts itself until it is closed.
type counted struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}
