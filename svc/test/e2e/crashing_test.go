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
	"github.com/streamdal/gophercon2021/svc/rabbit"
)

// An event that ends each process that works on it is dead-lettered after twenty returns. A
// quorum queue counts these, and the others come back with it only a few times. Here a
// process is a call of Consume, and its end cancels the call without an acknowledgement.
func TestEventThatEndsItsProcess(t *testing.T) {
	const events, killer, often = 30, "k7", 5
	e, _ := newBroker(t)
	e.channel(func(ch *amqp.Channel) error {
		if _, err := ch.QueueDelete("orders-queue", false, false, false); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare("orders-queue", true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
			return err
		}
		return ch.QueueBind("orders-queue", "#", "events", false, nil)
	})
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
		log := slog.New(slog.DiscardHandler)
		pipeline := &consume.Pipeline{
			Role: "orders", Handlers: map[string]consume.Handler{"new_order": work}, Claims: claim.NoDedup{}, InProcess: true,
			Counter: &counted, Log: log, MaxAttempts: 3, Timeout: time.Minute, Semaphore: make(consume.Semaphore, 8),
		}
		e.must(rabbit.Consume(process, rabbit.Config{
			Server:   rabbit.Server{URLs: []string{e.amqpURL}, CloseTimeout: time.Second},
			Topology: rabbit.Topology{Queue: "orders-queue"}, Log: log,
			Status: health.NewStatus(rabbit.PartBroker, rabbit.PartConsumer, rabbit.PartDeadLetters),
			Low:    8, Prefetch: 8, Slow: func() bool { return false }, MaxInFlight: 16, OneFirst: true,
			Handle: func(ctx context.Context, d consume.Delivery) {
				if n := d.Returns(); n > often && !strings.Contains(string(d.Body()), killer) {
					t.Errorf("%s has come back %d times", d.Body(), n)
				}
				pipeline.Handle(ctx, process, d)
				if counted.total() == events {
					end()
				}
			},
		}))
		end()
	}
	if counted.names["new_order_ok"] != events-1 || counted.names["new_order_failed"] != 1 {
		t.Errorf("the processes counted %v", counted.names)
	}
	if letters := e.deadLetters("orders"); len(letters) != 1 || letters[0].Headers["x-reason"] != "crashed" {
		t.Errorf("the dead letters are %v", letters)
	}
}

// counter counts outcomes by their names, and in all.
type counter struct {
	mu    sync.Mutex
	names map[string]int
	n     int
}

func (c *counter) Count(name string) {
	c.mu.Lock()
	c.names[name]++
	c.n++
	c.mu.Unlock()
}

func (c *counter) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
