// Package consume processes deliveries, from the body of a message to its
// acknowledgement. It knows neither the broker nor etcd.
//
//	parse ─▶ claim ─▶ work ─▶ complete ─▶ acknowledge        new_order_ok
//	  │        │        ├ failed ─▶ dead-letter, acknowledge   new_order_failed
//	  │        │        └ unavailable ─▶ wait, or requeue, acknowledge
//	  │        ├ came back too often ─▶ the same               new_order_failed
//	  │        └ done ─▶ acknowledge                           new_order_skipped
//	  ├ no handler for its type ─▶ acknowledge                 ignored
//	  │        └ but another process has one ─▶ requeue, acknowledge
//	  └ malformed ─▶ dead-letter, acknowledge                  malformed
//
// To requeue an event is to put a copy of it at the end of its queue. Each outcome
// is counted, by the name on the right, before the acknowledgement. A
// delivery that is interrupted, because its connection is lost or the service stops,
// is not acknowledged, and is redelivered.
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// Delivery is one message that waits for an acknowledgement. Ack, DeadLetter and Requeue
// may be called when the channel that brought it is gone.
type Delivery interface {
	Body() []byte
	Headers() map[string]any // as sent; nil: it has none
	// Returns is how often the message has come back unacknowledged, as far as its queue
	// counts that.
	Returns() int
	// Held is how many deliveries the consumer holds at most.
	Held() int
	// Ack acknowledges the message. If the channel that brought it has closed, Ack
	// does nothing, and the broker redelivers the message.
	Ack()
	// DeadLetter puts a copy of the message into the dead queue. It returns
	// when the broker has confirmed that, or fails when ctx ends.
	DeadLetter(ctx context.Context, f Failure) error
	// Requeue puts a copy of the message at the end of its queue. It returns when the
	// broker has confirmed that, or fails when ctx ends or the broker refuses the copy.
	Requeue(ctx context.Context) error
}

// Failure says why a message is dead-lettered.
type Failure struct {
	Reason   string // one of those below
	Err      error
	Attempts int // of the handler
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s after %d attempts: %v", f.Reason, f.Attempts, f.Err)
}

const (
	ReasonMalformed = "malformed" // the message is not an event
	ReasonFailed    = "failed"    // the last attempt has failed, or an error was Permanent
	ReasonCrashed   = "crashed"   // it has come back maxReturns times
)

// maxReturns is how often a message may come back. One that has come back as often probably
// ends the process that works on it. RabbitMQ 4 drops it at its next return.
const maxReturns = 20

// Claimer grants each id to one delivery at a time, among all processes.
type Claimer interface {
	// Claim waits until id is the caller's. claim.ErrDone: it was processed. Any other
	// error: ctx has ended, or the process stops.
	Claim(ctx context.Context, id string) (*claim.Claim, error)
	// Reclaim is for a claim that was suspended: it waits until the id is the
	// caller's again. Its errors are those of Claim, and end the claim.
	Reclaim(ctx context.Context, c *claim.Claim) error
	// Check makes sure that the claim is still the caller's.
	// claim.ErrSuspended: that is not known, so Reclaim it.
	Check(ctx context.Context, c *claim.Claim) error
	// Complete records the work durably and ends the claim. It waits through outages, and
	// takes no ctx: finished work is recorded even if its delivery is gone. claim.ErrDone:
	// another process has recorded it first. claim.ErrClosed: the process stops, and the
	// outcome is unknown.
	Complete(c *claim.Claim) error
	// Release ends the claim, undone.
	Release(c *claim.Claim)
	// HandledElsewhere reports whether another process of the role that lives handles a type
	// of events.
	HandledElsewhere(typ string) bool
}

// Counter counts outcomes by the names of [Counters].
type Counter interface {
	Count(name string)
}

// Counters returns the names by which a pipeline with these handlers counts: those of the
// README's table, without the role's prefix.
func Counters(handlers map[string]Handler) []string {
	names := []string{"malformed", "ignored"}
	for t := range handlers {
		names = append(names, t+"_ok", t+"_skipped", t+"_failed")
	}
	return names
}

// Pipeline handles the deliveries of one role. All exported fields must be set, but for
// RequireID and InProcess.
type Pipeline struct {
	Role        string
	Handlers    map[string]Handler // by type
	Claims      Claimer
	RequireID   bool // an event without an id is malformed; false only with claim.NoDedup
	InProcess   bool // the handlers run in this process, so an event that comes back again and again may end it
	Counter     Counter
	Log         *slog.Logger
	MaxAttempts int
	Timeout     time.Duration // of one attempt
	Semaphore   Semaphore
	Outage      *outage.Log // while the work of an event is Unavailable

	refusals refusals
}

// Semaphore has a slot for each handler that may run at once.
type Semaphore chan struct{}

// Handle processes one delivery until it is acknowledged or given up. When ctx ends, with
// the delivery's channel or at a stop, no more attempts begin, except to learn the outcome of
// an Unknown one. When handlerCtx ends, later in a stop, running handlers are cancelled.
// Finished work is recorded in either case.
func (p *Pipeline) Handle(ctx, handlerCtx context.Context, d Delivery) {
	e, err := event.Parse(d.Body())
	noID := errors.Is(err, event.ErrNoID)
	handler, handled := p.Handlers[e.Type]
	switch {
	case err != nil && !noID, noID && handled && p.RequireID:
		err = p.deadLetter(ctx, d, e, &Failure{Reason: ReasonMalformed, Err: err}, "malformed")
	case !handled:
		p.unhandled(ctx, d, e)
		return
	default:
		err = p.process(ctx, handlerCtx, d, e, handler)
	}
	if errors.Is(err, claim.ErrDone) {
		p.finish(d, e, "skipped", e.Type+"_skipped")
	}
	// Any other error says that ctx has ended or that the process stops, which is logged
	// elsewhere. The delivery is not acknowledged, so the broker delivers it again.
}

// process follows the rule: claim, work, complete, acknowledge.
func (p *Pipeline) process(ctx, handlerCtx context.Context, d Delivery, e event.Event, handler Handler) error {
	c, err := p.Claims.Claim(ctx, e.ID)
	if err != nil {
		return err
	}
	if n := d.Returns(); p.InProcess && n >= maxReturns {
		crashed := &Failure{Reason: ReasonCrashed, Err: fmt.Errorf("it has come back %d times: its work may end the process", n)}
		return p.notDone(ctx, d, c, e, crashed)
	}
	// A crash here: the event waits for CLAIM_TTL, then another process does the work.
	if err := p.work(ctx, handlerCtx, d, c, Job{Event: e, Headers: d.Headers(), Role: p.Role}, handler); err != nil {
		return p.notDone(ctx, d, c, e, err)
	}
	// A crash here: the work is done again. By the idempotency key and the token the
	// receiver of its effect can detect that.
	if err := p.Claims.Complete(c); err != nil {
		return err // ErrDone, if another process has done it as well: the event counts as skipped
	}
	// A crash here: the event is delivered again and skipped.
	p.finish(d, e, "processed", e.Type+"_ok")
	return nil
}

// unhandled ignores an event without a handler for its type. If another process of the role
// has one, as in a rolling deploy, it requeues the event until that process gets it.
func (p *Pipeline) unhandled(ctx context.Context, d Delivery, e event.Event) {
	wait := newBackoff(time.Second, 30*time.Second)
	for p.Claims.HandledElsewhere(e.Type) {
		sleep(ctx, ctx, wait.NextBackOff())
		if ctx.Err() != nil || p.requeue(ctx, d, e) == nil {
			return
		}
	}
	p.finish(d, e, "ignored", "ignored")
}

var errOrder = errors.New("the order of delivery is kept")

// requeue puts an event at the end of its queue, and acknowledges it. If it fails, the event
// waits where it is. With one slot it always fails.
func (p *Pipeline) requeue(ctx context.Context, d Delivery, e event.Event) error {
	if cap(p.Semaphore) == 1 {
		return errOrder
	}
	ctx, cancel := context.WithTimeout(ctx, requeueTimeout)
	defer cancel()
	if err := d.Requeue(ctx); err != nil {
		return err
	}
	p.Log.Debug("requeued", "type", truncate(e.Type), "id", e.ID)
	// A crash here: the event is in the queue twice.
	d.Ack()
	return nil
}

// requeueTimeout is how long the broker may take to confirm a copy.
const requeueTimeout = 10 * time.Second

// finish counts and logs the outcome of an event, and acknowledges it.
func (p *Pipeline) finish(d Delivery, e event.Event, outcome, counter string) {
	p.Counter.Count(counter)
	p.Log.Info(outcome, "type", truncate(e.Type), "id", e.ID)
	d.Ack()
}

// notDone dead-letters an event whose attempts failed, and then releases its claim, so that
// no other delivery has the id before the dead letter is stored. The failure is not
// remembered: another copy of the event is tried anew.
func (p *Pipeline) notDone(ctx context.Context, d Delivery, c *claim.Claim, e event.Event, err error) error {
	defer p.Claims.Release(c)
	if failure, ok := errors.AsType[*Failure](err); ok {
		return p.deadLetter(ctx, d, e, failure, e.Type+"_failed")
	}
	return err
}

// deadLetter puts a message into the dead queue, counts that, and acknowledges it.
func (p *Pipeline) deadLetter(ctx context.Context, d Delivery, e event.Event, f *Failure, counter string) error {
	if err := d.DeadLetter(ctx, *f); err != nil {
		return err
	}
	p.Counter.Count(counter)
	p.Log.Info("dead-lettered", "type", truncate(e.Type), "id", e.ID, "reason", f.Reason, "error", truncate(f.Err.Error()))
	// A crash here: it is dead-lettered twice.
	d.Ack()
	return nil
}

// maxLogged bounds, in bytes, each value from a message in the log.
const maxLogged = 1 << 10

func truncate(s string) string {
	if len(s) <= maxLogged {
		return s
	}
	return strings.ToValidUTF8(s[:maxLogged], "") + "…" // without half a character
}
