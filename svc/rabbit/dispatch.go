package rabbit

import (
	"context"
	"errors"

	"github.com/streadway/amqp"
)

// dispatch hands each delivery to a handler until the channel or ctx ends, and
// returns why it ended.
func (c *Consumer) dispatch(ctx context.Context, deliveries <-chan amqp.Delivery, closed <-chan *amqp.Error, acker *acker) error {
	work := make(chan *Delivery)
	defer close(work)
	single := c.oneByOne > 0
	for {
		d := &Delivery{acker: acker, deadLetters: c.DeadLetters}
		var ok bool
		select {
		case d.msg, ok = <-deliveries:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !ok {
			select {
			case err := <-closed: // sent before the deliveries end
				return err
			default:
				return errors.New("the broker cancelled the consumer: its queue was deleted or has moved")
			}
		}
		if single && c.oneByOne == 0 { // with prefetch 1 no other delivery is open
			return errPastUnreadable
		}
		c.oneByOne = max(c.oneByOne-1, 0)
		select {
		case c.semaphore <- struct{}{}:
		case err := <-closed:
			return err
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
