package e2e

import (
	"context"
	"log/slog"
	"testing"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/health"
	"github.com/streamdal/gophercon2021/svc/rabbit"
)

// The number of the queue's consumers is told again and again. A replica counts once,
// although it has replaced its consumer to hold more.
func TestConsumersAreCounted(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			e, _ := newBroker(t)
			e.channel(func(ch *amqp.Channel) error {
				_, err := ch.QueueDelete("orders-queue", false, false, false)
				return err
			})
			s := e.start("orders", "QUEUE_TYPE="+kind, "LOG_LEVEL=debug")
			s.waitLog("msg=consuming")
			e.publishBodies(orders("fast", 400)...)
			s.waitLog("holding deliveries", "level=1000")
			s.waitLogs(400, "msg=processed")

			counted := make(chan int)
			ctx, cancel := context.WithCancel(t.Context())
			stopped := make(chan error, 1)
			go func() {
				stopped <- rabbit.Consume(ctx, rabbit.Config{
					Server: rabbit.Server{URLs: []string{e.amqpURL}}, Topology: rabbit.Topology{Queue: "orders-queue"},
					Status: health.NewStatus(rabbit.PartBroker, rabbit.PartConsumer, rabbit.PartDeadLetters),
					Log:    slog.New(slog.DiscardHandler),
					Low:    1, Prefetch: 1, Slow: func() bool { return false }, MaxInFlight: 1,
					Handle: func(_ context.Context, d consume.Delivery) { d.Ack() },
					Consumers: func(n int) {
						select {
						case counted <- n:
						case <-ctx.Done():
						}
					},
				})
			}()
			for range 2 {
				if n := <-counted; n != 2 {
					t.Errorf("%d consumers, want 2", n)
				}
			}
			cancel()
			e.must(<-stopped)
		})
	}
}
