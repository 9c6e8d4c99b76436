package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/streadway/amqp"
)

var (
	errStopping = errors.New("stopping")
	// errPastUnreadable ends a connection on which deliveries came one at a time.
	errPastUnreadable = errors.New("the unreadable message is gone: taking many deliveries at once again")
)

// pastHead is how many readable deliveries must arrive before the unreadable message counts
// as gone: another replica may hold it for a moment.
const pastHead = 10

// consumeOnce consumes over one connection, from dialing to its end, and returns why it
// ended.
//
// A message that the library cannot read ends the connection, and all that were
// prefetched with it come again. From then on they come one at a time: those
// before it are finished and acknowledged, and when the connection ends again
// the unreadable one is at the head of the queue.
func (c *Consumer) consumeOnce(ctx context.Context) error {
	conn, err := c.Server.dial(ctx, c.Topology.Queue+" consumer", writeTimeout, c.from)
	if err != nil {
		return err
	}
	c.Status.Set(PartBroker, nil)
	prefetch := c.Prefetch
	if c.oneByOne > 0 {
		prefetch = 1
	}
	var ch *amqp.Channel
	acker := newAcker(func(tag uint64, multiple bool) error { return ch.Ack(tag, multiple) }, prefetch)
	var watching sync.WaitGroup // goroutines that end with the connection
	defer func() {
		defer conn.closeSoon().Stop()
		acker.close()
		conn.Close() // its error does not matter any more
		watching.Wait()
	}()
	var closed <-chan *amqp.Error
	var deliveries <-chan amqp.Delivery
	if err := conn.within(ctx, dialTimeout, func() (err error) {
		if ch, err = conn.Channel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		closed = ch.NotifyClose(make(chan *amqp.Error, 1)) // gets one error at most
		deliveries, err = c.consume(ch, prefetch)
		return err
	}); err != nil {
		// A node that is cut off from its cluster accepts logins, and nothing more.
		c.from = conn.next
		return fmt.Errorf("the broker at %s: %w", conn.broker, err)
	}
	c.consumed, c.from, c.logged = true, 0, ""
	c.Status.Set(PartConsumer, nil)
	c.Log.Info("consuming", "queue", c.Topology.Queue, "broker", conn.addr)

	alive, end := context.WithCancel(ctx)
	defer end()
	watching.Go(func() { c.verifyTopology(alive, conn) })
	began := time.Now()
	err = c.dispatch(alive, deliveries, closed, acker)
	if time.Since(began) > stable {
		c.wait.Reset()
	}
	if ctx.Err() != nil {
		c.Status.Set(PartConsumer, errStopping)
		// Deliveries that were not begun are delivered again. The broker may answer the
		// cancellation late, with a full prefetch on its way: nothing waits for that
		// answer, and the connection stays open for the acknowledgements.
		watching.Go(func() { ch.Cancel(consumerTag, true) })
		c.handling.Wait()
	}
	if unreadable(err) && prefetch == 1 {
		c.oneByOne = pastHead
		err = fmt.Errorf("%w: %w", errUnreadableHead, err)
	} else if unreadable(err) {
		c.oneByOne = prefetch
		err = fmt.Errorf("one of the first %d messages of the queue cannot be read by this client, they are taken one at a time now: %w", prefetch, err)
	}
	return fmt.Errorf("the broker at %s: %w", conn.broker, err)
}

const (
	consumerTag = "svc" // only within a channel
	// stable is how long a connection has to last to reset the backoff, if it brings no
	// deliveries.
	stable = 10 * time.Second
)

// consume declares the topology and begins to consume.
func (c *Consumer) consume(ch *amqp.Channel, prefetch int) (<-chan amqp.Delivery, error) {
	if err := c.Topology.declare(ch); err != nil {
		return nil, err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return nil, fmt.Errorf("set the prefetch to %d: %w", prefetch, err)
	}
	deliveries, err := ch.Consume(c.Topology.Queue, consumerTag, false, false, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume from queue %s: %w", c.Topology.Queue, err)
	}
	return deliveries, nil
}

// dispatch hands each delivery to a handler until the channel or ctx ends, and
// returns why it ended.
func (c *Consumer) dispatch(ctx context.Context, deliveries <-chan amqp.Delivery, closed <-chan *amqp.Error, acker *acker) error {
	work := make(chan *Delivery)
	defer close(work)
	single := c.oneByOne > 0
	for {
		d := &Delivery{acker: acker, deadLetters: c.deadLetters}
		var ok bool
		select {
		case d.msg, ok = <-deliveries:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch {
		case !ok && len(closed) > 0: // the library sends the error before the deliveries end
			return <-closed
		case !ok:
			return errors.New("the broker cancelled the consumer: its queue was deleted or has moved, or a delivery took longer than consumer_timeout")
		case single && c.oneByOne == 0: // with prefetch 1 no other delivery is unacknowledged
			return errPastUnreadable
		case single:
			c.oneByOne--
		default: // a connection that takes one at a time may end at the same message again
			c.wait.Reset()
		}
		select {
		case c.semaphore <- struct{}{}:
		case err := <-closed:
			return cmp.Or(err, amqp.ErrClosed)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case work <- d:
		default:
			c.handling.Go(func() { c.handle(ctx, d, work) })
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
