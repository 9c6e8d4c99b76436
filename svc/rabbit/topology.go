package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/streadway/amqp"
)

const exchange = "events"

// Topology is what one role needs at the broker: the exchange `events`, its
// queue bound to it with `#`, and a queue for its dead letters.
type Topology struct {
	Queue  string
	Quorum bool // quorum queues instead of classic ones
}

// DeadQueue is where the queue's dead letters go.
func (t Topology) DeadQueue() string { return t.Queue + ".dead" }

// declare makes what is not there yet. All of it is durable.
func (t Topology) declare(ch *amqp.Channel) error {
	if err := ch.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return declareError(err, "exchange", exchange)
	}
	if err := t.declareQueue(ch, t.Queue); err != nil {
		return err
	}
	if err := ch.QueueBind(t.Queue, "#", exchange, false, nil); err != nil {
		return fmt.Errorf("bind queue %s to exchange %s: %w", t.Queue, exchange, err)
	}
	return t.declareQueue(ch, t.DeadQueue())
}

func (t Topology) declareQueue(ch *amqp.Channel, name string) error {
	var args amqp.Table // none at all for a classic queue
	if t.Quorum {
		args = amqp.Table{"x-queue-type": "quorum"}
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
		return declareError(err, "queue", name)
	}
	return nil
}

func declareError(err error, kind, name string) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.PreconditionFailed && strings.Contains(e.Reason, "inequivalent arg") {
		return fmt.Errorf("the %s %s %w: %w", kind, name, errMismatch, err)
	}
	return fmt.Errorf("declare %s %s: %w", kind, name, err)
}

// verify declares everything again, on a channel of its own. It reports whether
// the exchange was gone. A binding that was gone cannot be told from one that
// was not: AMQP has no question for it, so it is simply bound again.
func (t Topology) verify(conn *amqp.Connection) (gone bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, fmt.Errorf("open a channel: %w", err)
	}
	var e *amqp.Error
	err = ch.ExchangeDeclarePassive(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	if errors.As(err, &e) && e.Code == amqp.NotFound { // which has closed the channel
		gone = true
		ch, err = conn.Channel()
	}
	if err != nil {
		return gone, fmt.Errorf("look for exchange %s: %w", exchange, err)
	}
	if err := t.declare(ch); err != nil {
		return gone, err
	}
	return gone, ch.Close()
}

const verifyEvery = 3 * time.Second

// verifyTopology declares the topology again and again until ctx ends. While the
// binding is missing the broker drops every event without an error, and the
// consumer does not notice.
func (c *Consumer) verifyTopology(ctx context.Context, conn *connection) {
	tick := time.NewTicker(verifyEvery)
	defer tick.Stop()
	var failed error
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		gone, err := c.Topology.verify(conn.Connection) // waits as long as the connection lives
		switch {
		case ctx.Err() != nil || conn.IsClosed():
			return
		case err != nil && failed == nil:
			c.Log.Warn("the topology cannot be declared: new events may not arrive",
				"error", fmt.Errorf("the broker at %s: %w", conn.broker, err), "hint", Hint(err))
		case err == nil && (gone || failed != nil):
			c.Log.Warn("topology restored: events published meanwhile are lost", "exchange", exchange, "queue", c.Topology.Queue)
		}
		if (err == nil) != (failed == nil) {
			c.Status.Set(PartConsumer, err)
		}
		failed = err
	}
}
