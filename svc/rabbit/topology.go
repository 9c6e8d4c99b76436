package rabbit

import (
	"context"
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
	Queue  string
	Quorum bool // quorum queues instead of classic ones
}

// deadQueue returns the name of the queue for dead letters.
func (t Topology) deadQueue() string { return t.Queue + ".dead" }

// declare declares everything, durable. What exists is left as it is.
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
	return t.declareQueue(ch, t.deadQueue())
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
	if hasCode(err, amqp.PreconditionFailed) && strings.Contains(err.Error(), "inequivalent arg") {
		return fmt.Errorf("the %s %s %w: %w", kind, name, errMismatch, err)
	}
	return fmt.Errorf("declare %s %s: %w", kind, name, err)
}

const verifyEvery = 3 * time.Second

// verifyTopology declares the topology again and again until ctx ends. While the
// binding is missing the broker drops every event without an error, and the
// consumer does not notice.
func (c *consumer) verifyTopology(ctx context.Context, conn *connection) {
	incomplete := &outage.Log{
		Logger: c.Log, Level: slog.LevelWarn,
		Begins: "the topology is incomplete: new events may be lost", Ends: "the topology is restored: events published meanwhile may be lost",
	}
	var ch *amqp.Channel // nil: none, or an error has closed it
	// verify returns when the broker answers or the connection ends. AMQP cannot be asked
	// whether a binding exists, so the queue is bound again each time.
	verify := func() (err error) {
		if ch == nil {
			ch, err = conn.Channel()
		}
		if err == nil && incomplete.Err() == nil { // otherwise the exchange may be missing
			err = ch.ExchangeDeclarePassive(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
		}
		if err == nil {
			err = c.Topology.declare(ch)
		}
		if err != nil {
			ch = nil
		}
		return err
	}
	failed := func(err error) {
		incomplete.Failed(time.Now(), fmt.Errorf("the broker at %s: %w", conn.broker, err), Hint(err))
	}
	for sleep(ctx, verifyEvery) {
		err := verify()
		if hasCode(err, amqp.NotFound) {
			failed(err)
			err = verify()
		}
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
	}
}
