package webhook

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/event"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The reactions of the pipeline to a handler's result.
const (
	isDone   = "done"
	isFailed = "retried"
	isOutage = "retried without counting"
	isFinal  = "final"
)

// verdict returns the pipeline's reaction to an error of a handler, and the wait before
// the next attempt. An error has no other effect.
func verdict(t *testing.T, err error) (what string, wait time.Duration) {
	t.Helper()
	if err == nil {
		return isDone, 0
	}
	synctest.Test(t, func(t *testing.T) {
		var attempts []int
		begin := time.Now()
		p := &consume.Pipeline{
			Claims: claim.NoDedup{}, Counter: nothing{}, Log: slog.New(slog.DiscardHandler),
			MaxAttempts: 2, Timeout: time.Hour, Semaphore: make(consume.Semaphore, 1),
			Handlers: map[string]consume.Handler{"new_order": func(_ context.Context, job consume.Job) error {
				attempts = append(attempts, job.Attempt)
				if len(attempts) == 1 {
					return err
				}
				wait = time.Since(begin)
				return nil
			}},
		}
		p.Handle(t.Context(), t.Context(), nothing{})
		switch fmt.Sprint(attempts) {
		case "[1]":
			what = isFinal
		case "[1 1]":
			what = isOutage
		case "[1 2]":
			what = isFailed
		}
	})
	return what, wait
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if got, _ := verdict(t, err); got != want {
		t.Errorf("%v: %s, want %s", err, got, want)
	}
}

// nothing is a delivery of one event, and a counter. Its methods have no effect.
type nothing struct{}

func (nothing) Body() []byte                                      { return []byte(`{"type":"new_order","id":"1"}`) }
func (nothing) Ack()                                              {}
func (nothing) DeadLetter(context.Context, consume.Failure) error { return nil }
func (nothing) Count(string)                                      {}

func newPoster(t *testing.T, url string) *Poster {
	p := New(url, 4, slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(p.Close)
	return p
}

func order(id string) consume.Job {
	return consume.Job{Role: "orders", Event: event.Event{Type: "new_order", ID: id, Body: []byte(`{"type":"new_order","id":"1"}`)}, Token: 7, Attempt: 2}
}

// deadline returns a context whose timeout only a failing test reaches.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (p *Poster) http() *http.Transport { return p.transport }

// useDialer makes the poster connect with dial.
func (p *Poster) useDialer(dial func(ctx context.Context) (net.Conn, error)) {
	p.http().DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
}

// answering dials a server that gives the first request on every connection the same
// answer, byte for byte, and then closes the connection.
func answering(answer string) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if readRequest(bufio.NewReader(server)) == nil {
				io.WriteString(server, answer)
			}
		}()
		return client, nil
	}
}

// readRequest reads a request and its whole body.
func readRequest(from *bufio.Reader) error {
	r, err := http.ReadRequest(from)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

// seen counts the posts and connections of a server.
type seen struct {
	posts, conns atomic.Int64
	end          func() // stops the server and waits for its end
}

// serve starts a TCP server. It closes a connection when handle returns.
func serve(t *testing.T, handle func(from *bufio.Reader, to net.Conn, seen *seen)) (url string, s *seen) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &seen{}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			serving.Go(func() {
				defer conn.Close()
				handle(bufio.NewReader(conn), conn, s)
			})
		}
	})
	s.end = func() {
		listener.Close()
		serving.Wait()
	}
	t.Cleanup(s.end)
	return "http://" + listener.Addr().String(), s
}

// hanging dials a server that sends the beginning of an answer and then hangs until end
// is closed.
func hanging(answer string, end <-chan struct{}) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if readRequest(bufio.NewReader(server)) == nil {
				io.WriteString(server, answer)
				<-end
			}
		}()
		return client, nil
	}
}

type watched struct {
	net.Conn
	closed chan<- struct{}
	once   sync.Once
}

func (c *watched) Close() error {
	c.once.Do(func() { c.closed <- struct{}{} })
	return c.Conn.Close()
}

// breaking is a connection whose writes fail once it has no bytes left.
type breaking struct {
	net.Conn
	left atomic.Int64
}

func (c *breaking) Write(b []byte) (int, error) {
	n := min(int64(len(b)), c.left.Load())
	if n > 0 {
		c.left.Add(-n)
		if n, err := c.Conn.Write(b[:n]); err != nil {
			return n, err
		}
	}
	if n < int64(len(b)) {
		return int(n), syscall.EPIPE
	}
	return int(n), nil
}
