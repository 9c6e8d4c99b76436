package consume_test

import (
	"context"
	"log/slog"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// runExample handles messages with a handler of new_order, one after the other, without etcd.
func runExample(ctx context.Context, work consume.Handler, messages ...consume.Delivery) {
	pipeline := &consume.Pipeline{
		Role: "orders", Handlers: map[string]consume.Handler{"new_order": work}, Claims: claim.NoDedup{},
		Counter: printCounter{}, Log: slog.New(slog.DiscardHandler),
		MaxAttempts: 3, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 32),
		Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler)},
	}
	for _, m := range messages {
		pipeline.Handle(ctx, ctx, m)
	}
}
