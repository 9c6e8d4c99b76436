package webhook

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
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

// bubble runs a test of that name in a bubble.
func bubble(t *testing.T, name string, test func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// receiver is the other side of a poster's connections. Use it in a bubble.
type receiver struct {
	steps              chan step    // the answers to the next requests, whatever connection they come on
	conns, open, posts atomic.Int64 // connections that were tried, those that are open, requests that began
	refuse             error        // not nil: no connection can be opened
	silent             bool         // connecting hangs
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
	r.conns.Add(1)
	if r.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.refuse != nil {
		return nil, r.refuse
	}
	client, server := net.Pipe()
	r.open.Add(1)
	go func() {
		defer r.open.Add(-1)
		defer server.Close()
		for from := bufio.NewReader(server); ; {
			request, err := http.ReadRequest(from)
			if err != nil {
				return
			}
			r.posts.Add(1)
			var s step // cuts the connection
			if len(r.steps) > 0 {
				s = <-r.steps
			}
			if !s.early {
				io.Copy(io.Discard, request.Body)
			}
			<-time.After(s.delay)
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

// newReceiver returns a receiver that answers with these steps.
func newReceiver(steps ...step) *receiver {
	r := &receiver{steps: make(chan step, 1000)}
	r.will(steps...)
	return r
}

// will adds steps.
func (r *receiver) will(steps ...step) {
	for _, s := range steps {
		r.steps <- s
	}
}

// poster returns a poster to r.
func (r *receiver) poster(t *testing.T, maxIdle int) *Poster {
	p := New("http://127.0.0.1", "", maxIdle)
	p.transport.DialContext = r.dial
	t.Cleanup(p.Close)
	return p
}

// What the pipeline makes of a handler's result.
const (
	isDone   = "done"
	isFailed = "retried"
	isOutage = "retried without counting"
	isFinal  = "final"
)

// verdict is the reaction of the pipeline to one call of a handler.
type verdict struct {
	what string
	took time.Duration // the call
	wait time.Duration // the pause after it
	kept bool          // the claim, even after the delivery's channel has closed
	err  error         // of the handler
}

// judge calls a handler once in a pipeline, with a timeout of 30 s.
func judge(t *testing.T, handle consume.Handler) verdict {
	v, began, calls := verdict{what: isFinal}, time.Now(), 0
	p := &consume.Pipeline{
		Claims: claim.NoDedup{}, Counter: nothing{}, Log: slog.New(slog.DiscardHandler),
		MaxAttempts: 2, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 1),
		Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler)},
	}
	handler := func(ctx context.Context, job consume.Job) error {
		if calls++; calls == 1 {
			v.err = handle(ctx, job)
			if v.took = time.Since(began); v.err == nil {
				v.what = isDone
			}
			return v.err
		}
		v.wait = time.Since(began) - v.took
		if v.what = isOutage; job.Attempt == 2 {
			v.what = isFailed
		}
		return nil
	}
	p.Handlers = map[string]consume.Handler{"new_order": handler}
	p.Handle(t.Context(), t.Context(), nothing{})

	delivery, gone := context.WithCancel(t.Context())
	p.Handlers["new_order"] = func(context.Context, consume.Job) error {
		if v.kept = delivery.Err() != nil; v.kept {
			return nil
		}
		gone()
		return v.err
	}
	p.Handle(delivery, t.Context(), nothing{})
	return v
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
