package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/outage"
)

const exchange = "events"

// Topology is what one role needs at the broker: the exchange `events`, its
// queue bound to it with `#`, and a queue for its dead letters.
type Topology struct {
	Queue string
	Type  string // that its queue must have, and new queues get; empty: any, and the broker's default
}

// deadQueue returns the name of the queue for dead letters.
func (t Topology) deadQueue() string { return t.Queue + ".dead" }

// ensure asks for a queue or exchange, and makes it if it is missing. What exists is used
// as it is, whatever its arguments, also if others made it. RabbitMQ 4.3 does not tell a user
// without any right to it whether it exists: then its use shows that.
func ensure(conn *connection, name string, missing func(error), declare func(ch *amqp.Channel, passive bool) error) error {
	err := conn.onChannel(func(ch *amqp.Channel) error { return declare(ch, true) })
	switch {
	case denied(err):
		return nil
	case hasCode(err, amqp.NotFound):
		missing(err)
		err = conn.onChannel(func(ch *amqp.Channel) error { return declare(ch, false) })
	}
	if err != nil {
		return fmt.Errorf("declare %s: %w", name, err)
	}
	return nil
}

// ensureQueue returns the number of the queue's consumers.
func (t Topology) ensureQueue(conn *connection, name string, missing func(error)) (consumers int, err error) {
	err = ensure(conn, "queue "+name, missing, func(ch *amqp.Channel, passive bool) error {
		if !passive {
			return t.makeQueue(ch, name)
		}
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		consumers = q.Consumers
		return err
	})
	return consumers, err
}

func (t Topology) makeQueue(ch *amqp.Channel, name string) error {
	var args amqp.Table
	if t.Type != "" {
		args = amqp.Table{"x-queue-type": t.Type}
	}
	_, err := ch.QueueDeclare(name, true, false, false, false, args)
	return err
}

// checkType returns an error if the broker says that the queue has another type than the
// one that was asked for. Rights or another argument of the queue can hide its type.
func (t Topology) checkType(conn *connection) error {
	if t.Type == "" {
		return nil
	}
	err := conn.onChannel(func(ch *amqp.Channel) error { return t.makeQueue(ch, t.Queue) })
	if e, ok := errors.AsType[*amqp.Error](err); ok && strings.Contains(e.Reason, "inequivalent arg 'x-queue-type'") {
		return fmt.Errorf("queue %s %w: %w", t.Queue, errOtherType, err)
	}
	return nil
}

// declare makes what is missing, durable, and calls missing with what the broker says about
// it. The queue is bound each time, since AMQP cannot be asked whether a binding exists. It
// returns the number of the queue's consumers.
func (c *consumer) declare(conn *connection, missing func(error)) (consumers int, err error) {
	if !conn.mayNotBind {
		err = ensure(conn, "exchange "+exchange, missing, func(ch *amqp.Channel, passive bool) error {
			if passive {
				return ch.ExchangeDeclarePassive(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
			}
			return ch.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
		})
	}
	queue := c.Topology.Queue
	if err == nil {
		consumers, err = c.Topology.ensureQueue(conn, queue, missing)
	}
	if err != nil || conn.mayNotBind {
		return consumers, err
	}
	err = conn.onChannel(func(ch *amqp.Channel) error { return ch.QueueBind(queue, "#", exchange, false, nil) })
	switch {
	case denied(err):
		conn.mayNotBind = true
		c.unbound.Failed(time.Now(), err, Hint(err))
	case err != nil:
		return 0, fmt.Errorf("bind queue %s to exchange %s: %w", queue, exchange, err)
	default:
		c.unbound.Answered(time.Now())
	}
	return consumers, nil
}

const verifyEvery = 3 * time.Second

// verifyTopology declares the topology again and again until ctx ends. While the
// binding is missing the broker drops every event without an error, and the
// consumer does not notice.
func (c *consumer) verifyTopology(ctx context.Context, conn *connection, s *subscription) {
	incomplete := &outage.Log{
		Logger: c.Log, Level: slog.LevelWarn,
		Begins: "the topology is incomplete: new events may be lost", Ends: "the topology is restored: events published meanwhile may be lost",
	}
	failed := func(err error) {
		incomplete.Failed(time.Now(), fmt.Errorf("the broker at %s: %w", conn.broker, err), Hint(err))
	}
	for sleep(ctx, verifyEvery) {
		consumers, err := c.declare(conn, failed)
		switch {
		case ctx.Err() != nil || conn.IsClosed():
			return
		case err != nil:
			failed(err)
			c.Status.Set(PartConsumer, err)
		case incomplete.Err() != nil:
			incomplete.Answered(time.Now())
			c.Status.Set(PartConsumer, nil)
		}
		// A quorum queue counts the consumers before the present one until their deliveries are
		// acknowledged.
		if err == nil && c.Consumers != nil && s.acker.acked.Load() >= s.former.Load() {
			c.Consumers(consumers)
		}
	}
}
