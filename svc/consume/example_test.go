package consume_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// This example runs the pipeline of one role, without a broker and without etcd.
func Example() {
	processOrder := func(ctx context.Context, job consume.Job) error {
		fmt.Printf("%s, attempt %d\n", job.Key(), job.Attempt)
		return nil
	}
	pipeline := &consume.Pipeline{
		Role:     "orders",
		Handlers: map[string]consume.Handler{"new_order": processOrder},
		Claims:   claim.NoDedup{}, // *claim.Etcd processes each id once
		Counter:  printCounter{}, Log: slog.New(slog.DiscardHandler),
		MaxAttempts: 3, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 32),
		Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler)},
	}
	ctx := context.Background()
	pipeline.Handle(ctx, ctx, message(`{"type":"new_order","id":"123"}`))
	pipeline.Handle(ctx, ctx, message(`{"type":"login"}`))
	pipeline.Handle(ctx, ctx, message(`not an event`))
	// Output:
	// orders/123, attempt 1
	// count new_order_ok
	// acknowledged
	// count ignored
	// acknowledged
	// dead letter: malformed
	// count malformed
	// acknowledged
}

type printCounter struct{}

func (printCounter) Count(name string) { fmt.Println("count", name) }

// message is a Delivery that prints what the pipeline does with it.
type message string

func (m message) Body() []byte            { return []byte(m) }
func (m message) Headers() map[string]any { return nil }
func (m message) Ack()                    { fmt.Println("acknowledged") }
func (m message) Returns() int            { return 0 }
func (m message) Held() int               { return 64 }

func (m message) DeadLetter(_ context.Context, l consume.Failure) error {
	fmt.Println("dead letter:", l.Reason)
	return nil
}
func (m message) Requeue(context.Context) error { return nil }
