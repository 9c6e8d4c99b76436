package webhook

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// address is a listener within the test's bubble.
type address struct {
	net.Listener
	conns chan net.Conn
	last  atomic.Int64 // when the last post began: nanoseconds since the begin of the test
	open  atomic.Int64 // connections
}

func (a *address) Accept() (net.Conn, error) {
	if conn, ok := <-a.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (a *address) Close() error {
	close(a.conns)
	return nil
}

// A host that moves is followed, although its old address still answers and its connections
// are never idle, and no post is lost on the way. The old connections are closed.
func TestHostMoves(t *testing.T) {
	const work, span = 3 * time.Second, 5 * time.Minute // of a post, and of the test
	for _, http2 := range []bool{false, true} {
		bubble(t, fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			began := time.Now()
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!http2)
			protocols.SetUnencryptedHTTP2(http2)
			var addresses [2]address // the old and the new
			for i := range addresses {
				a := &addresses[i]
				a.conns = make(chan net.Conn)
				server := http.Server{
					Protocols: protocols,
					Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
						a.last.Store(int64(time.Since(began)))
						<-time.After(work)
					}),
					ConnState: func(_ net.Conn, s http.ConnState) {
						switch s {
						case http.StateNew:
							a.open.Add(1)
						case http.StateClosed:
							a.open.Add(-1)
						}
					},
				}
				go server.Serve(a)
				defer server.Close()
			}
			var host atomic.Pointer[address]
			host.Store(&addresses[0])
			time.AfterFunc(maxAge/2, func() { host.Store(&addresses[1]) })
			p := New("http://127.0.0.1", "", 4)
			defer p.Close()
			p.transport.Protocols = protocols
			p.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				host.Load().conns <- server
				return client, nil
			}
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
			synctest.Wait()
			before, after := time.Duration(addresses[0].last.Load()), time.Duration(addresses[1].last.Load())
			if before > maxAge+work || after < span-work {
				t.Errorf("the last post at the old address began after %v, at the new one after %v", before, after)
			}
			if n := addresses[0].open.Load(); n != 0 || addresses[1].open.Load() == 0 {
				t.Errorf("%d connections to the old address are open", n)
			}
		})
	}
}
