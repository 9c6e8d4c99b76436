package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// maxDenials is how many times in a row the broker has to deny access before
// Run believes it: users and virtual hosts may be created after the broker has
// started.
const maxDenials = 5

// Consumer brings the deliveries of one queue to Handle. Set all fields.
type Consumer struct {
	Server      Server
	Topology    Topology
	DeadLetters *DeadLetters
	Status      Status
	Log         *slog.Logger

	Prefetch    int // deliveries that the broker sends before their acknowledgement
	MaxInFlight int // deliveries handled at once

	// Handle is called in a goroutine of its own for each delivery. Its context
	// ends when the delivery's channel is gone, and when Run's does.
	Handle func(context.Context, consume.Delivery)

	handling  sync.WaitGroup // handlers
	watching  sync.WaitGroup // goroutines that end with a connection
	semaphore chan struct{}
	consumed  bool // ever
	from      int  // the URL to try first
	oneByOne  int  // deliveries to take one at a time, see session
}

// Status is told whether the consumer has a connection (PartBroker), whether it
// consumes (PartConsumer), and whether dead letters are stored (PartDeadLetters).
type Status interface {
	Set(part string, err error)
}

// The parts that a Status is told of.
const (
	PartBroker      = "broker"
	PartConsumer    = "consumer"
	PartDeadLetters = "dead_letters"
)

// newBackoff paces connections.
func newBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 3 * time.Second, RandomizationFactor: 0.5,
	}
}

// Run consumes until ctx ends; then it returns nil when all handlers have
// returned and the finished deliveries are acknowledged. It returns an error
// only before it has ever consumed and when retrying cannot help: the broker
// denies access, or something exists with other arguments. Hint says how to fix
// it.
func (c *Consumer) Run(ctx context.Context) error {
	c.semaphore = make(chan struct{}, c.MaxInFlight)
	defer c.watching.Wait()
	defer c.handling.Wait()
	wait, denials := newBackoff(), 0
	for {
		progress, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errPastUnreadable) {
			continue
		}
		c.Status.Set(PartBroker, err)
		c.Status.Set(PartConsumer, err)
		if progress && !unreadable(err) {
			wait.Reset()
		}
		if denials++; !denied(err) {
			denials = 0
		}
		switch {
		case c.consumed:
		case errors.As(err, new(*mismatch)):
			return err
		case denials == maxDenials:
			return fmt.Errorf("the broker refused %d times in a row: %w", denials, err)
		}
		pause := wait.NextBackOff()
		attrs := []any{"error", err, "retry_in", pause.Round(time.Millisecond).String()}
		c.Log.Warn("no connection to the broker", append(attrs, hintAttrs(Hint(err))...)...)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

var (
	errStopping = errors.New("stopping")
	// errPastUnreadable ends a session in which deliveries came one at a time.
	errPastUnreadable = errors.New("the unreadable message is gone: taking many deliveries at once again")
)

// pastHead is how many deliveries have to come in place of an unreadable head
// until it counts as gone. Another replica may have it for a moment.
const pastHead = 10

// session is one connection, from dialing to its end. It reports whether any
// delivery came, and why it ended.
//
// A message that the library cannot read ends the connection, and all that were
// prefetched with it come again. From then on they come one at a time: those
// before it are finished and acknowledged, and when the connection ends again
// the unreadable one is at the head of the queue.
func (c *Consumer) session(ctx context.Context) (progress bool, err error) {
	conn, err := c.Server.dial(ctx, c.Topology.Queue+" consumer", writeTimeout, c.from)
	if err != nil {
		return false, err
	}
	defer conn.close()
	c.Status.Set(PartBroker, nil)
	prefetch := c.Prefetch
	if c.oneByOne > 0 {
		prefetch = 1
	}
	var ch *amqp.Channel
	var deliveries <-chan amqp.Delivery
	var closed <-chan error
	if err := conn.within(ctx, func() (err error) {
		ch, deliveries, closed, err = c.open(conn, prefetch)
		return err
	}); err != nil {
		// A node that is cut off from its cluster lets us in, and that is all.
		c.from = conn.next
		return false, fmt.Errorf("the broker at %s: %w", conn.broker, err)
	}
	c.consumed, c.from = true, 0
	c.Status.Set(PartConsumer, nil)
	c.Log.Info("consuming", "queue", c.Topology.Queue, "broker", conn.addr)

	acker := newAcker(ch)
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	c.watching.Go(func() { c.verifyTopology(alive, conn) })
	progress, err = c.dispatch(alive, deliveries, closed, acker)
	if ctx.Err() != nil {
		c.Status.Set(PartConsumer, errStopping)
		c.drain(ch, deliveries)
	}
	cancel()
	force := time.AfterFunc(c.Server.CloseTimeout, func() { conn.raw.Close() })
	defer force.Stop()
	acker.close()
	if unreadable(err) && prefetch == 1 {
		c.oneByOne = pastHead
		err = fmt.Errorf("%w: %w", errUnreadableHead, err)
	} else if unreadable(err) {
		c.oneByOne = prefetch
		err = fmt.Errorf("one of the first %d messages of the queue cannot be read by this client, they are taken one at a time now: %w", prefetch, err)
	}
	return progress, fmt.Errorf("the broker at %s: %w", conn.broker, err)
}

const consumerTag = "svc"

// open sets up a channel that consumes. Why the channel ended, whatever the
// cause, is received from closed.
func (c *Consumer) open(conn *connection, prefetch int) (*amqp.Channel, <-chan amqp.Delivery, <-chan error, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open a channel: %w", err)
	}
	closed := c.watch(ch)
	if err := c.Topology.declare(ch); err != nil {
		return nil, nil, nil, err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return nil, nil, nil, fmt.Errorf("set the prefetch to %d: %w", prefetch, err)
	}
	deliveries, err := ch.Consume(c.Topology.Queue, consumerTag, false, false, false, false, nil)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("consume from queue %s: %w", c.Topology.Queue, err)
	}
	return ch, deliveries, closed, nil
}

// watch receives the library's notice of a channel's end. The library sends it
// while it holds its locks, so something must always receive.
func (c *Consumer) watch(ch *amqp.Channel) <-chan error {
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	cancels := ch.NotifyCancel(make(chan string, 1))
	closed := make(chan error, 2)
	c.watching.Go(func() {
		for closes != nil || cancels != nil {
			select {
			case err, ok := <-closes:
				if ok {
					closed <- err
				}
				closes = nil
			case _, ok := <-cancels:
				if ok {
					closed <- errors.New("the broker cancelled the consumer: its queue was deleted or has moved")
				}
				cancels = nil
			}
		}
	})
	return closed
}

// dispatch hands each delivery to a handler until the channel or ctx ends.
func (c *Consumer) dispatch(ctx context.Context, deliveries <-chan amqp.Delivery, closed <-chan error, acker *acker) (progress bool, err error) {
	work := make(chan *Delivery)
	defer close(work)
	single := c.oneByOne > 0
	for {
		select {
		case c.semaphore <- struct{}{}:
		case err := <-closed:
			return progress, err
		case <-ctx.Done():
			return progress, nil
		}
		select {
		case msg, ok := <-deliveries:
			switch {
			case !ok:
				<-c.semaphore
				return progress, c.cause(closed)
			case single && c.oneByOne == 0: // with prefetch 1 nothing else is in flight
				<-c.semaphore
				return progress, errPastUnreadable
			case single:
				c.oneByOne--
			}
			progress = true
			d := &Delivery{msg: msg, acker: acker, deadLetters: c.DeadLetters}
			select {
			case work <- d:
			default:
				c.handling.Go(func() { c.handle(ctx, d, work) })
			}
		case err := <-closed:
			<-c.semaphore
			return progress, err
		case <-ctx.Done():
			<-c.semaphore
			return progress, nil
		}
	}
}

// handle handles d, and then what else comes while it waits: a goroutine that
// has grown its stack is cheaper than a new one.
func (c *Consumer) handle(ctx context.Context, d *Delivery, work <-chan *Delivery) {
	for more := true; more; {
		c.Handle(ctx, d)
		<-c.semaphore
		d, more = <-work
	}
}

// cause waits a moment for the reason why the deliveries ended: the library
// sends both at the same time.
func (c *Consumer) cause(closed <-chan error) error {
	select {
	case err := <-closed:
		return err
	case <-time.After(time.Second):
		return errors.New("the deliveries ended")
	}
}

// drain stops taking deliveries and waits for the handlers that run. Deliveries
// that were not begun are delivered again. The broker may answer the
// cancellation late, with a full prefetch on its way: nothing waits for that
// answer, and the connection stays open for the acknowledgements.
func (c *Consumer) drain(ch *amqp.Channel, deliveries <-chan amqp.Delivery) {
	c.watching.Go(func() { ch.Cancel(consumerTag, false) })
	c.watching.Go(func() {
		for range deliveries {
		}
	})
	c.handling.Wait()
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
			attrs := []any{"error", fmt.Errorf("the broker at %s: %w", conn.broker, err)}
			c.Log.Warn("the topology cannot be declared: new events may not arrive", slices.Concat(attrs, hintAttrs(Hint(err)))...)
		case err == nil && (gone || failed != nil):
			c.Log.Warn("topology restored: events published meanwhile are lost", "exchange", exchange, "queue", c.Topology.Queue)
		}
		if (err == nil) != (failed == nil) {
			c.Status.Set(PartConsumer, err)
		}
		failed = err
	}
}
