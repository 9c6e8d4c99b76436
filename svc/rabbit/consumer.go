package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// mostRefusals is how many refusals in a row it takes to believe them.
const mostRefusals = 5

// Consumer brings the deliveries of one queue to Handle. Set all fields.
type Consumer struct {
	Server   Server
	Topology Topology
	Letters  *DeadLetters
	Status   Status
	Log      *slog.Logger

	Prefetch int // deliveries that the broker sends before their acknowledgement
	Parallel int // deliveries handled at once

	// Handle is called in a goroutine of its own for each delivery. Its context
	// ends when the delivery's channel is gone, and when Run's does.
	Handle func(context.Context, consume.Delivery)

	handling sync.WaitGroup // handlers
	watching sync.WaitGroup // goroutines that listen to a channel's end
	room     chan struct{}
	consumed bool // ever
	from     int  // the URL to try first
}

// Status is told whether the consumer has a connection (PartBroker), and
// whether it consumes (PartConsumer).
type Status interface {
	Set(part string, err error)
}

const (
	PartBroker   = "broker"
	PartConsumer = "consumer"
)

// Run consumes until ctx ends; then it returns nil when all handlers have
// returned and what they have settled is acknowledged. Every other end is a
// broker that will not have us, and says how to mend it.
func (c *Consumer) Run(ctx context.Context) error {
	c.room = make(chan struct{}, c.Parallel)
	defer c.watching.Wait()
	defer c.handling.Wait()
	wait := &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 3 * time.Second, RandomizationFactor: 0.5,
	}
	refusals := 0
	for {
		progress, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.Status.Set(PartBroker, err)
		c.Status.Set(PartConsumer, err)
		if progress {
			wait.Reset()
		}
		if refusals++; !refused(err) || c.consumed {
			refusals = 0
		}
		if errors.As(err, new(*mismatch)) {
			return err
		}
		if refusals == mostRefusals {
			return fmt.Errorf("the broker refused %d times in a row: %s: %w", refusals, checkAccess, err)
		}
		pause := wait.NextBackOff()
		line := []any{"error", err, "next try in", pause.Round(time.Millisecond)}
		if refused(err) {
			line = append(line, "mend", checkAccess)
		}
		c.Log.Warn("no connection to the broker", line...)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

var errStopping = errors.New("stopping")

// session is one connection, from dialing to its end. It reports whether any
// delivery came, and why it ended.
func (c *Consumer) session(ctx context.Context) (progress bool, err error) {
	conn, err := c.Server.dial(ctx, c.Topology.Queue+" consumer", c.from)
	if err != nil {
		return false, err
	}
	defer conn.close()
	c.Status.Set(PartBroker, nil)
	var ch *amqp.Channel
	var deliveries <-chan amqp.Delivery
	var gone <-chan error
	if err := conn.within(ctx, func() (err error) {
		ch, deliveries, gone, err = c.open(conn)
		return err
	}); err != nil {
		// A node that is cut off from its cluster lets us in, and that is all.
		c.from = conn.next
		return false, fmt.Errorf("the broker at %s: %w", conn.addr, err)
	}
	c.consumed, c.from = true, 0
	c.Status.Set(PartConsumer, nil)
	c.Log.Info("consuming", "queue", c.Topology.Queue, "broker", conn.addr)

	settler := newSettler(ch)
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	progress, err = c.dispatch(alive, deliveries, gone, settler)
	if ctx.Err() != nil {
		c.Status.Set(PartConsumer, errStopping)
		c.drain(conn, ch, deliveries)
	}
	cancel()
	settler.close()
	return progress, err
}

const consumerTag = "svc"

// open sets up a channel that consumes. What it returns for an end of the
// channel, whatever its cause, is received from gone.
func (c *Consumer) open(conn *connection) (*amqp.Channel, <-chan amqp.Delivery, <-chan error, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open a channel: %w", err)
	}
	gone := c.watch(ch)
	if err := c.Topology.declare(ch); err != nil {
		return nil, nil, nil, err
	}
	if err := ch.Qos(c.Prefetch, 0, false); err != nil {
		return nil, nil, nil, fmt.Errorf("set the prefetch to %d: %w", c.Prefetch, err)
	}
	deliveries, err := ch.Consume(c.Topology.Queue, consumerTag, false, false, false, false, nil)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("consume from queue %s: %w", c.Topology.Queue, err)
	}
	return ch, deliveries, gone, nil
}

// watch drains what the library tells of a channel's end: it does so under its
// locks, so somebody must always listen.
func (c *Consumer) watch(ch *amqp.Channel) <-chan error {
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	cancelled := ch.NotifyCancel(make(chan string, 1))
	gone := make(chan error, 2)
	c.watching.Go(func() {
		for closed != nil || cancelled != nil {
			select {
			case err, ok := <-closed:
				if ok {
					gone <- explain(err)
				}
				closed = nil
			case _, ok := <-cancelled:
				if ok {
					gone <- errors.New("the broker cancelled the consumer: its queue was deleted or has moved")
				}
				cancelled = nil
			}
		}
	})
	return gone
}

// explain says what an end of the channel means where its text does not.
func explain(err *amqp.Error) error {
	if err.Code == amqp.FrameError && !err.Server && err.Reason == amqp.ErrSyntax.Error() {
		return fmt.Errorf("a message at the head of the queue cannot be read by this client, probably for a header of an unusual type: "+
			"remove it (management UI, Get messages) to let the others through: %w", err)
	}
	return err
}

// dispatch hands each delivery to a handler until the channel or ctx ends.
func (c *Consumer) dispatch(ctx context.Context, deliveries <-chan amqp.Delivery, gone <-chan error, s *settler) (progress bool, err error) {
	work := make(chan *Delivery)
	defer close(work)
	for {
		select {
		case c.room <- struct{}{}:
		case err := <-gone:
			return progress, err
		case <-ctx.Done():
			return progress, nil
		}
		select {
		case msg, ok := <-deliveries:
			if !ok {
				<-c.room
				return progress, c.cause(gone)
			}
			progress = true
			d := &Delivery{msg: msg, settler: s, letters: c.Letters}
			select {
			case work <- d:
			default:
				c.handling.Go(func() { c.handle(ctx, d, work) })
			}
		case err := <-gone:
			<-c.room
			return progress, err
		case <-ctx.Done():
			<-c.room
			return progress, nil
		}
	}
}

// handle sees d to its end, and then what else comes while it waits: a
// goroutine that has grown its stack is cheaper than a new one.
func (c *Consumer) handle(ctx context.Context, d *Delivery, work <-chan *Delivery) {
	for more := true; more; {
		c.Handle(ctx, d)
		<-c.room
		d, more = <-work
	}
}

// cause waits a moment for the reason why the deliveries ended: the library
// tells both at the same time.
func (c *Consumer) cause(gone <-chan error) error {
	select {
	case err := <-gone:
		return err
	case <-time.After(time.Second):
		return errors.New("the deliveries ended")
	}
}

// drain ends consuming in good order: no more deliveries, those that came and
// were not started are left to be delivered again, those that were are seen to
// their end.
func (c *Consumer) drain(conn *connection, ch *amqp.Channel, deliveries <-chan amqp.Delivery) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range deliveries {
		}
	}()
	force := time.AfterFunc(conn.goodbye, func() { conn.raw.Close() })
	ch.Cancel(consumerTag, false) // closes deliveries, as the end of the channel does
	force.Stop()
	<-drained
	c.handling.Wait()
}
