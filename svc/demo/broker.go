package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streadway/amqp"
)

// broker is one connection to RabbitMQ, made again when it is lost. It belongs
// to one goroutine.
type broker struct {
	url      string
	conn     *amqp.Connection
	channel  *amqp.Channel
	confirms chan amqp.Confirmation
}

// outageLimit is how long the broker may be away.
const outageLimit = time.Minute

// batch is how many events are published before their confirms are awaited.
const batch = 100

func (b *broker) open() error {
	if b.channel != nil {
		return nil
	}
	conn, err := amqp.DialConfig(b.url, amqp.Config{Heartbeat: 5 * time.Second, Dial: amqp.DefaultDial(2 * time.Second)})
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
	b.conn, b.channel = conn, channel
	b.confirms = channel.NotifyPublish(make(chan amqp.Confirmation, batch))
	return nil
}

func (b *broker) close() {
	if b.conn != nil {
		b.conn.Close()
	}
	b.conn, b.channel = nil, nil
}

// publish sends events as plumber does, and returns when the broker has
// confirmed them. What is not confirmed because the broker goes away is sent
// again when it is back: that makes duplicates, which the services are to skip.
func (b *broker) publish(ctx context.Context, bodies []string) error {
	ctx, cancel := context.WithTimeout(ctx, outageLimit)
	defer cancel()
	for len(bodies) > 0 {
		n := min(batch, len(bodies))
		for {
			err := b.send(ctx, bodies[:n])
			if err == nil {
				break
			}
			b.close()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("publish: %w: %w", ctx.Err(), err)
			}
		}
		bodies = bodies[n:]
	}
	return nil
}

func (b *broker) send(ctx context.Context, bodies []string) error {
	if err := b.open(); err != nil {
		return err
	}
	for _, body := range bodies {
		message := amqp.Publishing{Body: []byte(body), AppId: "plumber", DeliveryMode: amqp.Persistent}
		if err := b.channel.Publish("events", "foo", false, false, message); err != nil {
			return err
		}
	}
	for range bodies {
		select {
		case confirm, ok := <-b.confirms:
			if !ok || !confirm.Ack {
				return errors.New("a message was not confirmed")
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// inspect returns how many messages are ready in a queue, and how many consumers
// it has. A queue that does not exist has none of both.
func (b *broker) inspect(queue string) (ready, consumers int64, err error) {
	if err := b.open(); err != nil {
		return 0, 0, err
	}
	q, err := b.channel.QueueInspect(queue)
	if err == nil {
		return int64(q.Messages), int64(q.Consumers), nil
	}
	b.close() // the broker has closed the channel
	if refused := (*amqp.Error)(nil); errors.As(err, &refused) && refused.Code == amqp.NotFound {
		return 0, 0, nil
	}
	return 0, 0, fmt.Errorf("inspect %s: %w", queue, err)
}
