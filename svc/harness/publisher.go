package harness

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streadway/amqp"
)

// Publisher publishes to the exchange events with routing key foo, as plumber does. It
// connects at its first use, and again after an error. It must not be used by several
// goroutines at once.
type Publisher struct {
	URL         string
	DialTimeout time.Duration // 0: 30 s

	conn     *amqp.Connection
	channel  *amqp.Channel
	confirms chan amqp.Confirmation
}

const (
	// batch is the number of messages that are published before their confirms are
	// awaited. The channel of confirms has capacity for all of them: a full channel
	// would block the connection's reader.
	batch = 4096

	confirmTimeout = time.Minute // for each confirm

	retryInterval = 100 * time.Millisecond
)

// Message returns a message as `plumber write rabbit` sends it.
func Message(body string) amqp.Publishing {
	return amqp.Publishing{Body: []byte(body), AppId: "plumber", DeliveryMode: amqp.Persistent}
}

// Open connects, unless the publisher is connected.
func (p *Publisher) Open() error {
	if p.channel != nil {
		return nil
	}
	timeout := p.DialTimeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	conn, err := amqp.DialConfig(p.URL, amqp.Config{Heartbeat: 10 * time.Second, Dial: amqp.DefaultDial(timeout)})
	if err != nil {
		return fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	channel, err := conn.Channel()
	if err == nil {
		err = channel.Confirm(false)
	}
	if err != nil {
		conn.Close()
		return fmt.Errorf("open a channel: %w", err)
	}
	p.conn, p.channel = conn, channel
	p.confirms = channel.NotifyPublish(make(chan amqp.Confirmation, batch))
	return nil
}

// Close closes the connection, if there is one.
func (p *Publisher) Close() {
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn, p.channel = nil, nil
}

// Publish publishes messages and returns when the broker has confirmed them.
// After an error some of them may have been published.
func (p *Publisher) Publish(ctx context.Context, messages ...amqp.Publishing) error {
	for len(messages) > 0 {
		n := min(batch, len(messages))
		if err := p.publishBatch(ctx, messages[:n]); err != nil {
			p.Close()
			return err
		}
		messages = messages[n:]
	}
	return nil
}

// PublishUntilConfirmed retries Publish until the broker has confirmed all messages.
// After an error it publishes all of them again, so the queues may get some of them
// more than once.
func (p *Publisher) PublishUntilConfirmed(ctx context.Context, messages ...amqp.Publishing) error {
	for {
		err := p.Publish(ctx, messages...)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return fmt.Errorf("publish: %w: %w", ctx.Err(), err)
		}
	}
}

func (p *Publisher) publishBatch(ctx context.Context, messages []amqp.Publishing) error {
	if err := p.Open(); err != nil {
		return err
	}
	for _, m := range messages {
		if err := p.channel.Publish("events", "foo", false, false, m); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	for range messages {
		select {
		case confirm, ok := <-p.confirms:
			if !ok || !confirm.Ack {
				return fmt.Errorf("a message was not confirmed (%v, %v)", confirm, ok)
			}
		case <-time.After(confirmTimeout):
			return errors.New("a confirm did not come")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Ready returns how many messages are ready in a queue. For a queue that does not exist
// it returns 0.
func (p *Publisher) Ready(queue string) (n int64, err error) {
	if err := p.Open(); err != nil {
		return 0, err
	}
	q, err := p.channel.QueueInspect(queue)
	if err == nil {
		return int64(q.Messages), nil
	}
	p.Close() // the broker has closed the channel
	if refused := (*amqp.Error)(nil); errors.As(err, &refused) && refused.Code == amqp.NotFound {
		return 0, nil
	}
	return 0, fmt.Errorf("inspect %s: %w", queue, err)
}
