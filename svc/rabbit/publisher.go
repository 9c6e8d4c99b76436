package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
)

const (
	// The broker has confirmTimeout to confirm a message, and a second more for each
	// minRate bytes of its body, unless it says that it is short of memory or disk.
	confirmTimeout, minRate = 30 * time.Second, 32 << 10
	// The first and the longest pause before a message that the broker refuses is tried again.
	minRefusedWait, maxRefusedWait = time.Second, 30 * time.Second
)

// publisher publishes dead letters one at a time, so that what the broker answers is about
// that one. One that it refuses is tried again later and does not hold up the others.
//
// Its connection is opened when it is needed and is not the consumer's: while the broker is
// short of memory or disk it stops reading from connections that publish, and
// acknowledgements must still get through.
type publisher struct {
	Config
	letters chan *letter // from the deliveries to run

	// Owned by run:
	outage  *outage.Log
	waiting []*letter   // those received and not answered
	blocked bool        // by the broker, which does not read
	ch      *confirming // nil: none
}

// letter is a message on its way to a queue.
type letter struct {
	ctx    context.Context // ends with the message's delivery
	queue  string
	msg    amqp.Publishing
	answer chan error // nil: the broker has stored the message

	// Owned by run:
	due     time.Time // when it is published again; zero: it is new
	wait    *backoff.ExponentialBackOff
	refusal error // the last one
	others  int   // brokers that may store it when one refuses it: that one may be cut off
	trimmed bool  // it has only the headers of onlyAdded
}

func newPublisher(cfg Config) *publisher {
	return &publisher{Config: cfg, letters: make(chan *letter), outage: &outage.Log{
		Logger: cfg.Log, Level: slog.LevelWarn,
		Begins: "the dead queue is unreachable: dead letters wait unacknowledged", Ends: "the dead queue is reachable again",
	}}
}

// publish returns when the broker has confirmed that the message is in the queue. It fails
// only when ctx ends.
func (p *publisher) publish(ctx context.Context, queue string, msg amqp.Publishing) error {
	l := &letter{ctx: ctx, queue: queue, msg: msg, answer: make(chan error, 1),
		wait: newBackoff(minRefusedWait, maxRefusedWait), others: len(p.Server.URLs) - 1}
	select {
	case p.letters <- l:
		return <-l.answer
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run publishes letters until ctx ends.
func (p *publisher) run(ctx context.Context) {
	// No limit to a write: a broker under an alarm does not read. See try.
	l := link{name: p.Topology.deadQueue() + " publisher", outage: p.outage, failed: p.failed}
	for p.next(ctx, nil) != nil {
		p.Server.serve(ctx, l, p.use) // ends when nothing waits
	}
	for _, l := range p.waiting {
		l.answer <- context.Cause(ctx)
	}
}

// failed notes why nothing can be published. It returns an error if nothing has to be.
func (p *publisher) failed(err error) error {
	if p.drop(); len(p.waiting) == 0 {
		return err
	}
	p.Status.Set(PartDeadLetters, err)
	return nil
}

// drop answers the letters whose deliveries have gone.
func (p *publisher) drop() {
	p.waiting = slices.DeleteFunc(p.waiting, func(l *letter) bool {
		gone := context.Cause(l.ctx)
		if gone != nil {
			l.answer <- gone
		}
		return gone != nil
	})
}

// next waits for a letter that is to be published now: a new one, or one that was refused a
// while ago. It returns nil when ctx ends, or the connection that alarms belongs to.
func (p *publisher) next(ctx context.Context, alarms <-chan amqp.Blocking) *letter {
	for {
		p.drop()
		if ctx.Err() != nil {
			return nil
		}
		var due <-chan time.Time
		var gone <-chan struct{} // the deliveries of a channel go together
		var refused error
		if n := len(p.waiting); n > 0 {
			first := slices.MinFunc(p.waiting, func(a, b *letter) int { return a.due.Compare(b.due) })
			wait := time.Until(first.due)
			if wait <= 0 {
				return first
			}
			due, gone = time.After(wait), first.ctx.Done()
			refused = fmt.Errorf("the broker refuses %d dead letters: %w", n, first.refusal)
		}
		if !p.blocked {
			p.Status.Set(PartDeadLetters, refused)
		}
		select {
		case l := <-p.letters:
			p.waiting = append(p.waiting, l)
		case <-due:
		case <-gone:
		case alarm, connected := <-alarms:
			p.alarm(alarm)
			if !connected {
				return nil
			}
		case <-ctx.Done():
		}
	}
}

// use publishes over one connection until it ends or fails.
func (p *publisher) use(ctx context.Context, conn *connection) error {
	p.ch, p.blocked = nil, false
	// The library blocks when this is full: nothing receives during some calls of seconds.
	alarms := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	for l := p.next(ctx, alarms); l != nil; l = p.next(ctx, alarms) {
		err := p.try(conn, alarms, l)
		switch {
		case refuses(err) && hasCode(err, amqp.FrameError) && !l.trimmed: // the headers do not fit into a frame
			l.msg.Headers, l.trimmed = onlyAdded(l.msg.Headers), true
			return errAtOnce // the broker has closed the connection
		case refuses(err) && l.others > 0:
			l.others--
			return errAtOnce // at another broker
		case refuses(err):
			p.refuse(l, err)
		case err != nil:
			return err // the letter waits for the next connection
		default:
			l.answer <- nil
			p.waiting = slices.DeleteFunc(p.waiting, func(w *letter) bool { return w == l })
		}
		conn.served = true
		p.outage.Answered(time.Now())
	}
	return nil
}

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

// alarm notes whether the broker takes messages. The end of a connection ends its alarm: the
// next one may be to another broker.
func (p *publisher) alarm(b amqp.Blocking) {
	if b.Active {
		err := fmt.Errorf("the broker takes no messages: %s", b.Reason)
		p.outage.Failed(time.Now(), err, "")
		p.Status.Set(PartDeadLetters, err)
	} else if p.blocked {
		p.outage.Answered(time.Now())
		p.Status.Set(PartDeadLetters, nil)
	}
	p.blocked = b.Active
}

// refuse notes that the broker refuses a letter.
func (p *publisher) refuse(l *letter, err error) {
	first := l.refusal == nil
	l.refusal, l.due = err, time.Now().Add(l.wait.NextBackOff())
	if !first {
		return
	}
	e, _ := event.Parse(l.msg.Body) // no id if that is why it is dead
	p.Log.Warn("the broker refuses a dead letter: it waits unacknowledged",
		"id", e.ID, "reason", l.msg.Headers["x-reason"], "error", err, "hint", Hint(err))
	if n := len(p.waiting); n == min(p.Prefetch, p.MaxInFlight) {
		p.Log.Warn("no events are delivered: the broker refuses the dead letters of all deliveries that are handled at once",
			"refused", n, "hint", "see the refused dead letters for the cause; a higher PREFETCH, or a CONCURRENCY above 1, lets events through until then")
	}
}

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
// error. On a new channel it declares the queue, which may have been deleted.
func (p *publisher) send(conn *connection, l *letter) (err error) {
	if p.ch == nil {
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		if err := p.Topology.declareQueue(ch, l.queue); err != nil {
			return err
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
		return fmt.Errorf("queue %s is gone", l.queue)
	case !confirm.Ack:
		return refusal{errNacked}
	}
	return nil
}
