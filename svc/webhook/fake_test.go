package webhook

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is the other side of a poster's connections. It answers the requests with its
// steps, in order, whatever connection they come on. Use it in a bubble.
type receiver struct {
	mu                 sync.Mutex
	steps              []step
	conns, open, posts int   // connections that were tried, those that are open, requests that began
	refuse             error // not nil: no connection can be opened
	silent             bool  // connecting hangs
}

// step is what a receiver does with one request. Then it closes the connection, unless
// keep or hang is set.
type step struct {
	answer string // is written to the letter
	early  bool   // do not read the body
	delay  time.Duration
	keep   bool // read the next request
	hang   bool // do nothing until the poster closes the connection
}

// ok keeps the connection.
var ok = step{answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", keep: true}

func (r *receiver) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	r.add(&r.conns, 1)
	if r.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.refuse != nil {
		return nil, r.refuse
	}
	client, server := net.Pipe()
	r.add(&r.open, 1)
	go func() {
		defer r.add(&r.open, -1)
		defer server.Close()
		for from := bufio.NewReader(server); ; {
			request, err := http.ReadRequest(from)
			if err != nil {
				return
			}
			s := r.next()
			if !s.early {
				io.Copy(io.Discard, request.Body)
			}
			if s.delay > 0 {
				<-time.After(s.delay)
			}
			io.WriteString(server, s.answer)
			if s.hang {
				io.Copy(io.Discard, from)
			}
			if !s.keep {
				return
			}
		}
	}()
	return client, nil
}

func (r *receiver) add(n *int, by int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n += by
}

// will sets the next steps.
func (r *receiver) will(steps ...step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = steps
}

// next counts a request, and returns what to do with it.
func (r *receiver) next() (s step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.posts++; len(r.steps) > 0 {
		s, r.steps = r.steps[0], r.steps[1:]
	}
	return s
}

// poster returns a poster to r. It is closed with stop, before the bubble ends.
func (r *receiver) poster(maxIdle int) (p *Poster, stop func()) {
	p = New("http://127.0.0.1", "", maxIdle)
	p.transport.DialContext = r.dial
	return p, func() {
		p.Close()
		synctest.Wait()
	}
}

// The reactions of the pipeline to a handler's result.
const (
	isDone   = "done"
	isFailed = "retried"
	isOutage = "retried without counting"
	isFinal  = "final"
)

// verdict runs a handler once in a pipeline, with a timeout of 30 s, and returns the
// pipeline's reaction: how long it took and how long the pipeline then waits.
func verdict(t *testing.T, handle consume.Handler) (what string, took, wait time.Duration, err error) {
	began, calls := time.Now(), 0
	what = isFinal
	pipeline(func(ctx context.Context, job consume.Job) error {
		if calls++; calls == 1 {
			err = handle(ctx, job)
			if took = time.Since(began); err == nil {
				what = isDone
			}
			return err
		}
		wait = time.Since(began) - took
		if what = isOutage; job.Attempt == 2 {
			what = isFailed
		}
		return nil
	}).Handle(t.Context(), t.Context(), nothing{})
	return what, took, wait, err
}

func pipeline(handler consume.Handler) *consume.Pipeline {
	return &consume.Pipeline{
		Handlers: map[string]consume.Handler{"new_order": handler},
		Claims:   claim.NoDedup{}, Counter: nothing{}, Log: slog.New(slog.DiscardHandler),
		MaxAttempts: 2, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 1),
		Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler)},
	}
}

// unknown reports whether the pipeline keeps a claim because of a handler's error, even
// after the delivery's channel has closed.
func unknown(t *testing.T, err error) bool {
	gone, leave := context.WithCancel(t.Context())
	calls := 0
	pipeline(func(context.Context, consume.Job) error {
		if leave(); calls > 0 {
			err = nil
		}
		calls++
		return err
	}).Handle(gone, t.Context(), nothing{})
	return calls > 1
}

// nothing is a delivery of one event, and a counter. Its methods have no effect.
type nothing struct{}

func (nothing) Body() []byte                                      { return []byte(`{"type":"new_order","id":"1"}`) }
func (nothing) Headers() map[string]any                           { return nil }
func (nothing) Returns() int                                      { return 0 }
func (nothing) Held() int                                         { return 64 }
func (nothing) Ack()                                              {}
func (nothing) DeadLetter(context.Context, consume.Failure) error { return nil }
func (nothing) Requeue(context.Context) error                     { return nil }
func (nothing) Count(string)                                      {}

func order(id string) consume.Job {
	return consume.Job{Role: "orders", Event: event.Event{Type: "new_order", ID: id, Body: []byte(`{"type":"new_order","id":"1"}`)}, Token: 7, Attempt: 2}
}
