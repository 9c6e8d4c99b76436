package rabbit

import (
	"context"
	"errors"
	"time"

	"github.com/streadway/amqp"
)

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
			case single && c.oneByOne == 0: // with prefetch 1 no other delivery is open
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
