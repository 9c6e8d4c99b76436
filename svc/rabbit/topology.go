package rabbit

import (
	"errors"
	"fmt"

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

// mismatch is a queue or exchange that exists, but is not what was declared. It
// does not get over that by itself.
type mismatch struct {
	kind, name string
	err        error
}

func (m *mismatch) Error() string {
	advice := "delete it at the broker"
	if m.kind == "queue" {
		advice = "set QUEUE_TYPE to what it is, or delete it when it is empty (rabbitmqctl delete_queue " + m.name + " --if-empty)"
	}
	return fmt.Sprintf("the %s %s exists with other arguments: %s: %v", m.kind, m.name, advice, m.err)
}

func (m *mismatch) Unwrap() error { return m.err }

func declareError(err error, kind, name string) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.PreconditionFailed {
		return &mismatch{kind, name, err}
	}
	return fmt.Errorf("declare %s %s: %w", kind, name, err)
}
