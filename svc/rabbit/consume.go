package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streadway/amqp"
)

// pastHead is how many readable deliveries must arrive before the unreadable message counts
// as gone: another replica may hold it for a moment.
const pastHead = 10

// use consumes over one connection and returns why that ended.
//
// A message that the library cannot read ends the connection, and all that were
// prefetched with it come again. From then on they come one at a time: those
// before it are finished and acknowledged, and when the connection ends again
// the unreadable one is at the head of the queue.
func (c *consumer) use(ctx context.Context, conn *connection) error {
	c.Status.Set(PartBroker, nil)
	prefetch := c.Prefetch
	if c.oneByOne > 0 {
		prefetch = 1
	}
	var ch *amqp.Channel
	var closed <-chan *amqp.Error
	var deliveries <-chan amqp.Delivery
	if err := conn.within(ctx, dialTimeout, func() (err error) {
		ignore := func(error) {}
		if err := c.declare(conn, ignore); err != nil {
			return err
		}
		if err := c.Topology.checkType(conn); err != nil {
			return err
		}
		// The publisher reports a dead queue that cannot be made, when it is needed.
		c.Topology.ensureQueue(conn, c.Topology.deadQueue(), ignore)
		if ch, err = conn.Channel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		closed = ch.NotifyClose(make(chan *amqp.Error, 1)) // gets one error at most
		deliveries, err = c.consume(ch, prefetch)
		return err
	}); err != nil {
		return err // and try the next URL: a node that is cut off from its cluster accepts logins, and nothing more
	}
	conn.next = 0
	c.consumed = true
	c.outage.Answered(time.Now())
	c.Status.Set(PartConsumer, nil)
	c.Log.Info("consuming", "queue", c.Topology.Queue, "broker", conn.addr)

	acker := newAcker(ch.Ack, prefetch)
	defer func() {
		defer conn.closeSoon().Stop()
		acker.close()
	}()
	alive, end := context.WithCancel(ctx)
	defer end()
	conn.watchers.Go(func() { c.verifyTopology(alive, conn) })
	err := c.dispatch(alive, conn, deliveries, closed, acker)
	if ctx.Err() != nil {
		c.Status.Set(PartConsumer, errors.New("stopping"))
		// Deliveries that were not begun are delivered again. The broker may answer the
		// cancellation late, with a full prefetch on its way: nothing waits for that
		// answer, and the connection stays open for the acknowledgements.
		conn.watchers.Go(func() { ch.Cancel(consumerTag, true) })
		c.handling.Wait()
	}
	switch {
	case unreadable(err) && prefetch == 1:
		c.oneByOne = pastHead
		return fmt.Errorf("%w: %w", errUnreadableHead, err)
	case unreadable(err):
		c.oneByOne = prefetch
		return fmt.Errorf("one of the first %d messages of the queue cannot be read by this client, they are taken one at a time now: %w", prefetch, err)
	}
	return err
}

const consumerTag = "svc" // within the channel

// consume begins to consume.
func (c *consumer) consume(ch *amqp.Channel, prefetch int) (<-chan amqp.Delivery, error) {
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
func (c *consumer) dispatch(ctx context.Context, conn *connection, deliveries <-chan amqp.Delivery, closed <-chan *amqp.Error, acker *acker) error {
	work := make(chan *Delivery)
	defer close(work)
	single := c.oneByOne > 0
	for {
		d := &Delivery{acker: acker, publisher: c.publisher}
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
		case single && c.oneByOne == 0:
			return errAtOnce // the unreadable message is gone: take many at once. No other delivery is unacknowledged
		case single: // a connection that takes one at a time may end at the same message again
			c.oneByOne--
		default:
			conn.served = true
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

// handle handles d, and then what else comes while it waits: a goroutine that has grown its
// stack is cheaper than a new one, by 5 µs of CPU a delivery.
func (c *consumer) handle(ctx context.Context, d *Delivery, work <-chan *Delivery) {
	for more := true; more; {
		c.Handle(ctx, d)
		<-c.semaphore
		d, more = <-work
	}
}
