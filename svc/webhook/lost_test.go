package webhook

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A failure closes the idle connections, because they may be dead as well.
func TestFailureDropsIdleConnections(t *testing.T) {
	tests := map[string]struct {
		fail func(r *http.Request)
		want string
	}{
		"connection lost": {func(*http.Request) { panic(http.ErrAbortHandler) }, isOutage},
		"too slow":        {func(r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() }, isFailed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var together sync.WaitGroup
			together.Add(2)
			closed := make(chan net.Conn, 10)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Idempotency-Key") == "orders/bad" {
					tt.fail(r)
					return
				}
				together.Done()
				together.Wait()
			}))
			server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed <- conn
				}
			}
			server.Start()
			defer server.Close()
			p := newPoster(t, server.URL)
			var posts sync.WaitGroup
			for range 2 {
				posts.Go(func() {
					if err := p.Handle(deadline(t), order("1")); err != nil {
						t.Error(err)
					}
				})
			}
			posts.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			expect(t, p.Handle(ctx, order("bad")), tt.want)
			for range 2 { // the connection of the failure, and the idle one
				select {
				case <-closed:
				case <-deadline(t).Done():
					t.Fatal("a connection is not closed")
				}
			}
		})
	}
}

// A connection that is lost before an answer is an outage. Only the pipeline repeats
// the post, never net/http.
func TestConnectionLost(t *testing.T) {
	tests := map[string]string{ // the answer
		"cut before the answer":      "",
		"cut in the status":          "HTTP/1.1 20",
		"cut in the headers":         "HTTP/1.1 200 OK\r\nContent-Le",
		"not HTTP":                   "SSH-2.0-OpenSSH_9.2\r\n",
		"headers that are too large": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
	}
	for name, answer := range tests {
		for _, reused := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", on a reused connection ", reused), func(t *testing.T) {
				url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
					for n := 0; readRequest(from) == nil; n++ {
						seen.posts.Add(1)
						if !reused || n > 0 {
							io.WriteString(to, answer)
							return
						}
						io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				})
				p, posts := newPoster(t, url), int64(1)
				if reused {
					posts = 2
					if err := p.Handle(deadline(t), order("1")); err != nil {
						t.Fatal(err)
					}
				}
				err := p.Handle(deadline(t), order("1"))
				expect(t, err, isOutage)
				if text := fmt.Sprint(err); len(text) > 1000 || !strings.Contains(text, `event "1"`) {
					t.Errorf("the error has %d bytes: %.1000v", len(text), text)
				}
				p.Close()
				if seen.end(); seen.posts.Load() != posts || seen.conns.Load() != 1 {
					t.Errorf("%d posts on %d connections, want %d on 1", seen.posts.Load(), seen.conns.Load(), posts)
				}
			})
		}
	}
}

func TestNoAnswerInTime(t *testing.T) {
	tests := map[string]string{ // the bytes that arrive
		"nothing":      "",
		"only a part":  "HTTP/1.1 200 OK\r\nContent-",
		"only interim": "HTTP/1.1 103 Early Hints\r\n\r\n",
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p, end := newPoster(t, "http://127.0.0.1"), make(chan struct{})
				p.useDialer(hanging(answer, end))
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				err = p.Handle(ctx, order("1"))
				if took := time.Since(begin); took != 30*time.Second {
					t.Errorf("Handle took %v, want 30s", took)
				}
				close(end)
				p.Close()
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			expect(t, err, isFailed)
		})
	}
}

// Once the status has arrived, the rest of the answer changes nothing, and the handler
// waits for it no longer than its timeout.
func TestAnswerThatHangs(t *testing.T) {
	tests := map[string]struct{ answer, want string }{
		"done":             {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", isDone},
		"an outage":        {"HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nno", isOutage},
		"a failure":        {"HTTP/1.1 500 No\r\nContent-Length: 10\r\n\r\nno", isFailed},
		"final":            {"HTTP/1.1 404 No\r\nContent-Length: 10\r\n\r\nno", isFinal},
		"another protocol": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n", isFinal},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p, end := newPoster(t, "http://127.0.0.1"), make(chan struct{})
				p.useDialer(hanging(tt.answer, end))
				time.AfterFunc(time.Minute, func() { close(end) })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				err = p.Handle(ctx, order("1"))
				if took := time.Since(begin); took > 30*time.Second {
					t.Errorf("Handle took %v, its timeout is 30s", took)
				}
				<-end
				p.Close()
			})
			expect(t, err, tt.want)
		})
	}
}

// A connection that the server has closed while it was idle costs nothing.
func TestServerClosesIdleConnection(t *testing.T) {
	url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
		if readRequest(from) == nil {
			seen.posts.Add(1)
			io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p, closed := newPoster(t, url), make(chan struct{}, 10)
	p.useDialer(func(ctx context.Context) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		return &watched{Conn: conn, closed: closed}, err
	})
	for range 3 {
		if err := p.Handle(deadline(t), order("1")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-closed: // net/http has noticed the end of the connection
		case <-deadline(t).Done():
			t.Fatal("the end of the connection went unnoticed")
		}
	}
	p.Close()
	if seen.end(); seen.posts.Load() != 3 || seen.conns.Load() != 3 {
		t.Errorf("%d posts on %d connections, want 3 on 3", seen.posts.Load(), seen.conns.Load())
	}
}

// A connection that breaks while the request is written is an outage, and the next
// attempt succeeds.
func TestWriteFails(t *testing.T) {
	tests := map[string]struct {
		reused bool
		body   int   // bytes
		after  int64 // bytes of the request
		want   string
	}{
		"before the first byte":                        {false, 100, 0, isOutage},
		"before the first byte on a reused connection": {true, 100, 0, isOutage},
		"before the first byte of much":                {true, 1 << 20, 0, isOutage},
		"in the headers":                               {false, 100, 10, isOutage},
		"in the body":                                  {false, 1 << 20, 10_000, isOutage},
		"in the body on a reused connection":           {true, 1 << 20, 10_000, isOutage},
		"before the last byte on a reused connection":  {true, 1 << 20, 1 << 20, isOutage},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
				for readRequest(from) == nil {
					seen.posts.Add(1)
					io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			var conns []*breaking
			p := newPoster(t, url)
			p.useDialer(func(ctx context.Context) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
				c := &breaking{Conn: conn}
				c.left.Store(1 << 40)
				if conns = append(conns, c); !tt.reused && len(conns) == 1 {
					c.left.Store(tt.after)
				}
				return c, err
			})
			posts := int64(1)
			if tt.reused {
				posts++
				if err := p.Handle(deadline(t), order("1")); err != nil {
					t.Fatal(err)
				}
				conns[0].left.Store(tt.after)
			}
			job := order("1")
			job.Body = bytes.Repeat([]byte("x"), tt.body)
			expect(t, p.Handle(deadline(t), job), tt.want)
			if err := p.Handle(deadline(t), job); err != nil {
				t.Errorf("the next attempt: %v", err)
			}
			p.Close()
			if seen.end(); seen.posts.Load() != posts || seen.conns.Load() != 2 {
				t.Errorf("%d whole posts on %d connections, want %d on 2", seen.posts.Load(), seen.conns.Load(), posts)
			}
		})
	}
}
