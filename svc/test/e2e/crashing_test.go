package e2e

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/health"
	"github.com/streamdal/gophercon2021/svc/outage"
	"github.com/streamdal/gophercon2021/svc/rabbit"
)

// An event that ends each process that works on it is dead-lettered after twenty returns. A
// quorum queue counts these, and the others come back with it only a few times. Here a
// process is a call of Consume, and its end cancels the call without an acknowledgement.
func TestEventThatEndsItsProcess(t *testing.T) {
	const events, killer, often = 30, "k7", 5
	e, _ := newBroker(t)
	e.replaceQueue(quorum)
	e.channel(func(ch *amqp.Channel) error { return ch.QueueBind("orders-queue", "#", "events", false, nil) })
	e.publishBodies(orders("k", events)...)
	counted := counter{names: make(map[string]int)}
	for ends := 0; counted.total() < events; ends++ {
		if ends > 30 {
			t.Fatalf("%d processes have ended, and counted %v", ends, counted.names)
		}
		process, end := context.WithCancel(t.Context())
		work := func(_ context.Context, job consume.Job) error {
			if job.ID == killer {
				end()
			}
			select {
			case <-process.Done():
				return context.Cause(process)
			case <-time.After(20 * time.Millisecond):
				return nil
			}
		}
		pipeline := &consume.Pipeline{
			Role: "orders", Handlers: map[string]consume.Handler{"new_order": work}, Claims: claim.NoDedup{}, InProcess: true,
			Counter: &counted, Log: slog.New(slog.DiscardHandler), MaxAttempts: 3, Timeout: time.Minute, Semaphore: make(consume.Semaphore, 8),
			Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler)},
		}
		config := consuming(8, func(ctx context.Context, d consume.Delivery) {
			if n := d.Returns(); n > often && !strings.Contains(string(d.Body()), killer) {
				t.Errorf("%s has come back %d times", d.Body(), n)
			}
			pipeline.Handle(ctx, process, d)
			if counted.total() == events {
				end()
			}
		}, e.amqpURL)
		config.OneFirst = true
		e.must(rabbit.Consume(process, config))
		end()
	}
	if counted.names["new_order_ok"] != events-1 || counted.names["new_order_failed"] != 1 {
		t.Errorf("the processes counted %v", counted.names)
	}
	if letters := e.deadLetters("orders"); len(letters) != 1 || letters[0].Headers["x-reason"] != "crashed" {
		t.Errorf("the dead letters are %v", letters)
	}
}

// consuming configures package rabbit to consume from orders-queue in this process, and to hold
// that many deliveries.
func consuming(held int, handle func(context.Context, consume.Delivery), urls ...string) rabbit.Config {
	return rabbit.Config{
		Server: rabbit.Server{URLs: urls, CloseTimeout: time.Second}, Topology: rabbit.Topology{Queue: "orders-queue"},
		Status: health.NewStatus(rabbit.PartBroker, rabbit.PartConsumer, rabbit.PartDeadLetters),
		Log:    slog.New(slog.DiscardHandler),
		Low:    held, Prefetch: held, Slow: func() bool { return false }, MaxInFlight: 2 * held, Handle: handle,
	}
}

// counter counts outcomes by their names.
type counter struct {
	mu    sync.Mutex
	names map[string]int
}

func (c *counter) Count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[name]++
}

func (c *counter) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, count := range c.names {
		n += count
	}
	return n
}
