package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/streadway/amqp"
)

// Publisher publishes to the exchange events with routing key foo, as plumber does. It
// connects at its first use, and again after an error. Its methods return soon after
// their ctx has ended, even if the broker does not answer. It must not be used by several
// goroutines at once.
type Publisher struct {
	URL         string
	DialTimeout time.Duration // bounds a connection attempt, as ctx does; 0: 30 s

	conn     *amqp.Connection
	socket   net.Conn // of conn
	channel  *amqp.Channel
	confirms chan amqp.Confirmation
}

const (
	// batch is the number of messages that are published before their confirms are
	// awaited. The channel of confirms has capacity for all of them: a full channel
	// would block the connection's reader.
	batch = 4096

	confirmTimeout = time.Minute // for each confirm
	closeTimeout   = time.Second // for the broker's answer to Close

	retryInterval = 100 * time.Millisecond
)

// Message returns a message as `plumber write rabbit` sends it.
func Message(body string) amqp.Publishing {
	return amqp.Publishing{Body: []byte(body), AppId: "plumber", DeliveryMode: amqp.Persistent}
}

// do connects, unless the publisher is connected, and calls f. If that fails, it closes
// the connection, so that the next call connects again. Package amqp has no deadlines:
// the end of ctx closes the socket, and with that ends every call that waits for the
// broker.
func (p *Publisher) do(ctx context.Context, f func() error) (err error) {
	if p.conn == nil {
		if err := p.connect(ctx); err != nil {
			p.Close() // the library returns a connection whose login failed, too
			return fmt.Errorf("connect to RabbitMQ: %w", err)
		}
	}
	socket := p.socket
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer func() {
		if inTime := stop(); err != nil || !inTime {
			p.Close()
		}
	}()
	if p.channel == nil {
		if err := p.openChannel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
	}
	return f()
}

func (p *Publisher) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(p.DialTimeout, 30*time.Second))
	defer cancel()
	stop := func() bool { return true }
	p.conn, err = amqp.DialConfig(p.URL, amqp.Config{
		Heartbeat: 10 * time.Second,
		Dial: func(network, addr string) (net.Conn, error) {
			socket, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				p.socket, stop = socket, context.AfterFunc(ctx, func() { socket.Close() })
			}
			return socket, err
		},
	})
	stop()
	return err
}

func (p *Publisher) openChannel() error {
	channel, err := p.conn.Channel()
	if err != nil {
		return err
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	p.channel, p.confirms = channel, channel.NotifyPublish(make(chan amqp.Confirmation, batch))
	return nil
}

// Close closes the connection, if there is one.
func (p *Publisher) Close() {
	if p.conn != nil {
		p.socket.SetDeadline(time.Now().Add(closeTimeout))
		p.conn.Close()
	}
	p.conn, p.channel = nil, nil
}

// Publish publishes messages and returns when the broker has confirmed them.
// After an error some of them may have been published.
func (p *Publisher) Publish(ctx context.Context, messages ...amqp.Publishing) error {
	for len(messages) > 0 {
		n := min(batch, len(messages))
		if err := p.do(ctx, func() error { return p.publishBatch(ctx, messages[:n]) }); err != nil {
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

// PublishAt publishes messages at a rate, in bursts of a twentieth of it, or of one message,
// each as PublishUntilConfirmed does. It returns when the next message would be due.
func (p *Publisher) PublishAt(ctx context.Context, perSecond int, messages ...amqp.Publishing) error {
	burst := max(perSecond/20, 1)
	tick := time.NewTicker(time.Second * time.Duration(burst) / time.Duration(perSecond))
	defer tick.Stop()
	for part := range slices.Chunk(messages, burst) {
		if err := p.PublishUntilConfirmed(ctx, part...); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("publish: %w", ctx.Err())
		}
	}
	return nil
}

func (p *Publisher) publishBatch(ctx context.Context, messages []amqp.Publishing) error {
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

// Ready returns how many messages are ready in queues. A queue that does not exist has
// none.
func (p *Publisher) Ready(ctx context.Context, queues ...string) (n int, err error) {
	for _, queue := range queues {
		err := p.do(ctx, func() error {
			q, err := p.channel.QueueInspect(queue)
			n += q.Messages
			return err
		})
		if refused := (*amqp.Error)(nil); errors.As(err, &refused) && refused.Code == amqp.NotFound {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("inspect %s: %w", queue, err)
		}
	}
	return n, nil
}
