package rabbit

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// The first and the longest pause before a message that the broker refuses is tried again.
const minRefusedWait, maxRefusedWait = time.Second, 30 * time.Second

// publisher publishes dead letters, and copies of events to the end of their queue, one at a
// time, so that what the broker answers is about that one. A dead letter that it refuses is
// tried again later and does not hold up the others; a refused copy is given up.
//
// Its connection is opened when it is needed and is not the consumer's: while the broker is
// short of memory or disk it stops reading from connections that publish, and
// acknowledgements must still get through.
type publisher struct {
	Config
	letters chan *letter // from the deliveries to run
	held    atomic.Int64 // how many deliveries the consumer holds at most
	unmoved *outage.Log  // while the broker refuses copies

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
	return &publisher{Config: cfg, letters: make(chan *letter),
		outage: &outage.Log{
			Logger: cfg.Log, Level: slog.LevelWarn,
			Begins: "nothing can be published: dead letters, and events for the end of the queue, wait unacknowledged", Ends: "messages can be published again",
		},
		unmoved: &outage.Log{
			Logger: cfg.Log, Level: slog.LevelWarn,
			Begins: "the broker refuses an event at the end of the queue: it waits where it is",
		},
	}
}

// publish returns when the broker has confirmed that the message is in the queue. It fails
// when ctx ends, or when the broker refuses a copy.
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
		case err != nil && !refuses(err):
			return err // the letter waits for the next connection
		case err == nil || l.queue != p.Topology.deadQueue():
			l.answer <- err
			p.waiting = slices.DeleteFunc(p.waiting, func(w *letter) bool { return w == l })
		case hasCode(err, amqp.FrameError) && !l.trimmed: // the headers do not fit into a frame
			l.msg.Headers, l.trimmed = onlyAdded(l.msg.Headers), true
			return errAtOnce // the broker has closed the connection
		case l.others > 0:
			l.others--
			return errAtOnce // at another broker
		default:
			p.refuse(l, err)
		}
		conn.served = true
		p.outage.Answered(time.Now())
	}
	return nil
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
	if n := len(p.waiting); n == min(int(p.held.Load()), p.MaxInFlight) {
		p.Log.Warn("no events are delivered: the broker refuses the dead letters of all deliveries that are handled at once",
			"refused", n, "hint", "see the refused dead letters for the cause; a higher CONCURRENCY lets events through until then")
	}
}
