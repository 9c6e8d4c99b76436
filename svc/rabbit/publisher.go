package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streadway/amqp"
)

// The broker has confirmTimeout to confirm a message, and a second more for each
// minRate bytes of its body, unless it says that it is short of memory or disk.
const (
	confirmTimeout = 30 * time.Second
	minRate        = 32 << 10
)

var (
	errReturned = errors.New("the dead queue is gone")
	errNacked   = errors.New("the broker did not store the message (basic.nack)")
	errSilent   = errors.New("the broker did not confirm in time")
)

// refusal is the broker's answer to a message that it does not store. Other errors are
// about the connection, the channel or the dead queue.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

func refuses(err error) bool {
	_, refused := errors.AsType[refusal](err)
	return refused
}

// connect connects if there is no connection.
func (d *deadLetters) connect(ctx context.Context) error {
	if d.conn != nil && !d.conn.IsClosed() {
		return nil
	}
	d.disconnect()
	// No limit to a write: a broker under an alarm does not read. See publishOnce.
	conn, err := d.consumer.Server.dial(ctx, d.queue+" publisher", 0, d.from)
	if err != nil {
		return err
	}
	d.conn = conn
	blockings := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	d.listening.Go(func() {
		d.listen(blockings)
		conn.raw.Close() // the library does that later if a write blocks
	})
	return nil
}

// disconnect closes the connection. The next one is to another broker, if there
// are several.
func (d *deadLetters) disconnect() {
	if d.conn != nil {
		d.from = d.conn.next
		defer d.conn.closeSoon().Stop()
		d.conn.Close() // its error does not matter any more
		d.listening.Wait()
	}
	d.conn, d.ch = nil, nil
}

// listen notes whether the broker takes messages, until the connection ends. A
// message that is being published then goes on to wait, for the next connection.
func (d *deadLetters) listen(blockings <-chan amqp.Blocking) {
	unblock := func() {
		d.outage.Answered(time.Now())
		d.setDown(nil)
	}
	for b := range blockings {
		d.blocked.Store(b.Active)
		if b.Active {
			d.setDown(fmt.Errorf("the broker takes no messages: %s", b.Reason))
		} else {
			unblock()
		}
	}
	if d.blocked.Swap(false) && len(d.turn) == 0 {
		unblock()
	}
}

// publishOnce publishes, over a new connection if there is none, and returns the
// broker's answer. It ends the connection when the broker is silent. When ctx ends
// it still waits up to CloseTimeout for the confirm of a message that is on its way:
// otherwise the message would be redelivered, and stored in the dead queue twice.
func (d *deadLetters) publishOnce(ctx context.Context, msg amqp.Publishing) error {
	if err := d.connect(ctx); err != nil {
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- d.send(msg) }()
	timeout := confirmTimeout + time.Duration(len(msg.Body)/minRate)*time.Second
	for {
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			defer d.conn.closeSoon().Stop()
			return <-answer
		case <-time.After(timeout):
			if d.blocked.Load() {
				continue
			}
			d.conn.raw.Close()
			if <-answer == nil {
				return nil
			}
			return errSilent
		}
	}
}

// send publishes and waits for the broker's answer. After any error it closes the
// channel.
func (d *deadLetters) send(msg amqp.Publishing) (err error) {
	if d.ch == nil {
		if err := d.openChannel(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			d.ch.Close()
			d.ch = nil
		}
	}()
	if err := d.ch.Publish("", d.queue, true, false, trimHeaders(msg, d.conn.Config.FrameSize)); err != nil {
		return fmt.Errorf("publish to %s: %w", d.queue, err)
	}
	confirm, ok := <-d.confirmed
	switch {
	case !ok: // the channel is closed
		reason := cmp.Or(<-d.closed, amqp.ErrClosed)
		if reason.Server && reason.Code != amqp.ConnectionForced {
			return refusal{reason}
		}
		return reason
	case len(d.returned) > 0: // the broker sends it before the confirm
		return errReturned // the next channel declares the queue
	case !confirm.Ack:
		return refusal{errNacked}
	}
	return nil
}

// openChannel opens a channel. It declares the dead queue each time, which may
// have been deleted. All that the library tells of one message fits into the
// buffers, so nothing has to receive it in between.
func (d *deadLetters) openChannel() error {
	ch, err := d.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := d.consumer.Topology.declareQueue(ch, d.queue); err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	d.ch = ch
	d.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	d.returned = ch.NotifyReturn(make(chan amqp.Return, 1))
	d.confirmed = ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	return nil
}
