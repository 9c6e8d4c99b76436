package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/streadway/amqp"
)

// pastHead is how many readable deliveries must arrive before the unreadable message counts
// as gone: another replica may hold it for a moment.
const pastHead = 10

// subscription consumes on one channel: with one consumer of the broker after another, since
// AMQP cannot change the prefetch of a consumer.
type subscription struct {
	ch     *amqp.Channel
	closed <-chan *amqp.Error
	acker  *acker

	// Of the present consumer:
	tag        string
	level      int // deliveries held at most
	deliveries <-chan amqp.Delivery

	last   uint64        // tag of a delivery
	former atomic.Uint64 // the last tag of the consumers before the present one

	// More are held if Config.Low deliveries, the last with this tag, are finished soon after
	// since. Zero: none has arrived yet.
	since time.Time
	until uint64
}

// use consumes over one connection and returns why that ended.
//
// A message that the library cannot read ends the connection, and all that were
// prefetched with it come again. From then on they come one at a time: those
// before it are finished and acknowledged, and when the connection ends again
// the unreadable one is at the head of the queue.
func (c *consumer) use(ctx context.Context, conn *connection) error {
	c.Status.Set(PartBroker, nil)
	level := c.Low
	if c.oneByOne > 0 || c.OneFirst {
		level = 1
	}
	s := &subscription{}
	if err := conn.within(ctx, dialTimeout, func() (err error) {
		ignore := func(error) {}
		if _, err := c.declare(conn, ignore); err != nil {
			return err
		}
		if err := c.Topology.checkType(conn); err != nil {
			return err
		}
		// The publisher reports a dead queue that cannot be made, when it is needed.
		c.Topology.ensureQueue(conn, c.Topology.deadQueue(), ignore)
		if s.ch, err = conn.Channel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		s.closed = s.ch.NotifyClose(make(chan *amqp.Error, 1)) // gets one error at most
		return c.consume(s, level)
	}); err != nil {
		return err // and try the next URL: a node that is cut off from its cluster accepts logins, and nothing more
	}
	conn.next = 0
	c.consumed = true
	c.outage.Answered(time.Now())
	c.Status.Set(PartConsumer, nil)
	c.Log.Info("consuming", "queue", c.Topology.Queue, "broker", conn.addr)

	s.acker = newAcker(s.ch.Ack, 2*c.Prefetch)
	defer func() {
		defer conn.closeSoon().Stop()
		s.acker.close()
		// A quorum queue drops acknowledgements that are on their way when their channel closes
		// (rabbitmq-server issue 10327). It answers the end of a consumer after them.
		if ctx.Err() != nil {
			s.ch.Cancel(s.tag, false)
		}
	}()
	alive, end := context.WithCancel(ctx)
	defer end()
	conn.watchers.Go(func() { c.verifyTopology(alive, conn, s) })
	err := c.dispatch(alive, conn, s)
	if ctx.Err() != nil {
		c.Status.Set(PartConsumer, errors.New("stopping"))
		// Deliveries that were not begun are delivered again. If the handlers take longer than
		// 100 ms, the consumer is cancelled first, so that no more deliveries come meanwhile.
		// Nothing waits for the broker's answer, which may come late, behind a full prefetch.
		handled := make(chan struct{})
		conn.watchers.Go(func() {
			select {
			case <-time.After(100 * time.Millisecond):
				s.ch.Cancel(s.tag, true)
			case <-handled:
			}
		})
		c.handling.Wait()
		close(handled)
	}
	switch {
	case unreadable(err) && s.level == 1:
		c.oneByOne = pastHead
		return fmt.Errorf("%w: %w", errUnreadableHead, err)
	case unreadable(err):
		c.oneByOne = s.level
		return fmt.Errorf("one of the first %d messages of the queue cannot be read by this client, they are taken one at a time now: %w", s.level, err)
	}
	return err
}

// consume begins to consume with a new consumer, by a new tag: some quorum queues cannot bear
// one that was used before. Its prefetch comes on top of the deliveries that are still handled.
func (c *consumer) consume(s *subscription, level int) (err error) {
	c.consumers++
	s.tag, s.level, s.since = fmt.Sprint("svc-", c.consumers), level, time.Time{}
	s.former.Store(s.last)
	prefetch := max(level-len(c.semaphore), min(level, c.Low))
	if err := s.ch.Qos(prefetch, 0, false); err != nil {
		return fmt.Errorf("set the prefetch to %d: %w", prefetch, err)
	}
	if s.deliveries, err = s.ch.Consume(c.Topology.Queue, s.tag, false, false, false, false, nil); err != nil {
		return fmt.Errorf("consume from queue %s: %w", c.Topology.Queue, err)
	}
	c.publisher.held.Store(int64(level))
	c.Log.Debug("holding deliveries", "level", level, "prefetch", prefetch)
	return nil
}

const (
	fastEnough    = time.Second / 2 // to finish what is held, for more to be held
	oftenReturned = 5               // a message that came back so often is taken alone: no other comes back with it
)

// next returns how many deliveries are to be held, now that d has arrived.
func (c *consumer) next(s *subscription, d *Delivery) int {
	tag, low := d.msg.DeliveryTag, uint64(c.Low)
	s.last = tag
	switch {
	case c.oneByOne > 0, s.level == 1 && d.Returns() >= oftenReturned:
		return 1
	case s.level < c.Low || c.Slow():
		return c.Low
	case s.level > c.Low:
	case s.since.IsZero():
		s.since, s.until = time.Now(), tag+low-1 // those that come together with the first
	case tag >= s.until+low && s.acker.acked.Load() >= s.until:
		if time.Since(s.since) < fastEnough {
			return c.Prefetch
		}
		s.since, s.until = time.Now(), tag
	}
	return s.level
}

// dispatch hands each delivery to a handler until the channel or ctx ends, and
// returns why it ended.
func (c *consumer) dispatch(ctx context.Context, conn *connection, s *subscription) error {
	work := make(chan *Delivery)
	defer close(work)
	next := s.level // another one: the consumer is being cancelled
	for {
		d := &Delivery{acker: s.acker, publisher: c.publisher}
		var ok bool
		select {
		case d.msg, ok = <-s.deliveries:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch {
		case !ok && len(s.closed) > 0: // the library sends the error before the deliveries end
			return <-s.closed
		case !ok && next != s.level:
			if next < s.level {
				if err := c.handled(ctx, s, next); err != nil {
					return err
				}
			}
			if err := conn.within(context.WithoutCancel(ctx), dialTimeout, func() error { return c.consume(s, next) }); err != nil {
				return err
			}
			continue
		case !ok:
			return errors.New("the broker cancelled the consumer: its queue was deleted or has moved, or a delivery took longer than consumer_timeout (MAX_ATTEMPTS x HANDLER_TIMEOUT)")
		case c.oneByOne > 0: // a connection that takes one at a time may end at the same message again
			c.oneByOne--
		default:
			conn.served = true
		}
		if err := c.slot(ctx, s); err != nil {
			return err
		}
		select {
		case work <- d:
		default:
			c.handling.Go(func() { c.handle(ctx, d, work) })
		}
		if next != s.level {
			continue
		}
		if next = c.next(s, d); next != s.level {
			tag := s.tag
			conn.watchers.Go(func() { s.ch.Cancel(tag, false) }) // s.deliveries ends with the answer
		}
	}
}

// slot takes a slot for a delivery, or returns why the channel has ended.
func (c *consumer) slot(ctx context.Context, s *subscription) error {
	select {
	case c.semaphore <- struct{}{}:
		return nil
	case err := <-s.closed:
		return cmp.Or(err, amqp.ErrClosed)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// handled waits until no more than n deliveries are handled.
func (c *consumer) handled(ctx context.Context, s *subscription, n int) error {
	for range cap(c.semaphore) - n {
		if err := c.slot(ctx, s); err != nil {
			return err
		}
		defer func() { <-c.semaphore }()
	}
	return nil
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
