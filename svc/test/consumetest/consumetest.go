// Package consumetest runs handlers in a pipeline, without a broker and without etcd. Only there
// a test sees what the errors of a handler mean:
//
//	handlers := map[string]consume.Handler{"refund": handleRefund}
//	got := consumetest.Run(t.Context(), "billing", handlers, consumetest.Message{Body: `{"type":"refund","id":"1"}`})
//	want := []string{"count refund_ok", "acknowledged"}
package consumetest

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// Message is what a publisher sends.
type Message struct {
	Body    string
	Headers map[string]any
}

// Run handles the messages of a role, one after the other, with three attempts each. It returns
// what the pipeline did, in order: "count refund_ok", "dead letter: failed", "requeued",
// "acknowledged".
func Run(ctx context.Context, role string, handlers map[string]consume.Handler, messages ...Message) (did []string) {
	log := slog.New(slog.DiscardHandler)
	report := func(line string) { did = append(did, line) }
	pipeline := &consume.Pipeline{
		Role: role, Handlers: handlers, Claims: claim.NoDedup{}, Counter: counter(report),
		Log: log, Outage: &outage.Log{Logger: log}, MaxAttempts: 3, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 32),
	}
	for _, m := range messages {
		pipeline.Handle(ctx, ctx, delivery{m, report})
	}
	return did
}

// counter is a consume.Counter.
type counter func(line string)

func (report counter) Count(name string) { report("count " + name) }

// delivery is a consume.Delivery.
type delivery struct {
	message Message
	report  func(line string)
}

func (d delivery) Body() []byte            { return []byte(d.message.Body) }
func (d delivery) Headers() map[string]any { return d.message.Headers }
func (d delivery) Returns() int            { return 0 }
func (d delivery) Held() int               { return 64 }
func (d delivery) Ack()                    { d.report("acknowledged") }

func (d delivery) DeadLetter(_ context.Context, f consume.Failure) error {
	d.report(fmt.Sprint("dead letter: ", f.Reason))
	return nil
}

func (d delivery) Requeue(context.Context) error {
	d.report("requeued")
	return nil
}
