package rabbit

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/streadway/amqp"
)

// The broker has confirmTimeout to confirm a message, and a second more for each
// minRate bytes of its body, unless it says that it is short of memory or disk.
const confirmTimeout, minRate = 30 * time.Second, 32 << 10

// try publishes a letter and returns the broker's answer. It ends the connection when the
// broker is silent. When the letter's delivery has gone it still waits up to CloseTimeout for
// the confirm: otherwise the message would be redelivered, and stored twice.
func (p *publisher) try(conn *connection, alarms <-chan amqp.Blocking, l *letter) error {
	answer := make(chan error, 1)
	go func() { answer <- p.send(conn, l) }()
	for {
		var timeout <-chan time.Time
		if !p.blocked {
			timeout = time.After(confirmTimeout + time.Duration(len(l.msg.Body)/minRate)*time.Second)
		}
		select {
		case err := <-answer:
			return err
		case alarm, connected := <-alarms:
			if !connected { // the letter still waits, so an alarm is not over
				conn.raw.Close() // the library does that later if a write blocks
				return <-answer
			}
			p.alarm(alarm)
		case <-l.ctx.Done():
			defer conn.closeSoon().Stop()
			return <-answer
		case <-timeout:
			conn.raw.Close()
			if <-answer != nil {
				return errors.New("the broker did not confirm in time")
			}
			return nil
		}
	}
}

var errNoQueue = errors.New("the broker has no queue")

var errNacked = errors.New("the broker did not store the message (basic.nack)")

// refusal is the broker's answer to a message that it does not store. Other errors are
// about the connection, the channel or the queue.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

func refuses(err error) bool {
	_, refused := errors.AsType[refusal](err)
	return refused
}

// confirming is a channel for one message at a time. All that the library tells of one
// message fits into the buffers, so nothing has to receive it in between.
type confirming struct {
	*amqp.Channel
	closed    chan *amqp.Error
	returned  chan amqp.Return
	confirmed chan amqp.Confirmation
}

// send publishes a letter and waits for the broker's answer. It closes the channel after any
// error. Before a new channel it makes the queue, which may have been deleted.
func (p *publisher) send(conn *connection, l *letter) (err error) {
	if p.ch == nil {
		if _, err := p.Topology.ensureQueue(conn, l.queue, func(error) {}); err != nil {
			return err
		}
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		if err := ch.Confirm(false); err != nil {
			return fmt.Errorf("ask for confirms: %w", err)
		}
		p.ch = &confirming{
			ch, ch.NotifyClose(make(chan *amqp.Error, 1)), ch.NotifyReturn(make(chan amqp.Return, 1)), ch.NotifyPublish(make(chan amqp.Confirmation, 1)),
		}
	}
	defer func() {
		if err != nil {
			p.ch.Close()
			p.ch = nil
		}
	}()
	if p.ch.Publish("", l.queue, true, false, l.msg) != nil {
		conn.raw.Close() // so that the channel ends, with the reason
	}
	confirm, open := <-p.ch.confirmed
	switch {
	case !open:
		reason := cmp.Or(<-p.ch.closed, amqp.ErrClosed)
		if reason.Server && reason.Code != amqp.ConnectionForced {
			return refusal{reason}
		}
		return fmt.Errorf("publish to %s: %w", l.queue, reason)
	case len(p.ch.returned) > 0: // the broker sends it before the confirm
		return fmt.Errorf("%w %s", errNoQueue, l.queue)
	case !confirm.Ack:
		return refusal{errNacked}
	}
	return nil
}
