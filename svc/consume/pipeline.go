// Package consume processes deliveries, from the body of a message to its
// acknowledgement. It knows neither the broker nor etcd.
//
//	parse ─▶ claim ─▶ work ─▶ complete ─▶ count, acknowledge
//	  │        └ done ─▶ count skipped, acknowledge
//	  └ malformed ─▶ dead-letter, acknowledge
//
// A delivery that ends early is not acknowledged, and is redelivered.
package consume

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/event"
)

// Delivery is one message that waits for an acknowledgement. Both methods may
// be called when the channel that brought it is gone.
type Delivery interface {
	Body() []byte
	// Ack lets the broker forget the message. Without the channel that brought
	// it nothing happens: the broker delivers it again.
	Ack()
	// DeadLetter puts a copy of the message into the dead queue. It returns
	// when the broker has confirmed that, or fails when ctx ends.
	DeadLetter(ctx context.Context, f Failure) error
}

// Failure says why a message is dead-lettered.
type Failure struct {
	Reason   string // ReasonMalformed or ReasonFailed
	Err      error
	Attempts int // of the handler
}

const (
	ReasonMalformed = "malformed"
	ReasonFailed    = "failed"
)

// Claimer lets one delivery of an id at a time work, among all processes.
type Claimer interface {
	// Claim waits until id is the caller's. claim.ErrDone: it was processed. Any
	// other error: ctx has ended, or the process stops.
	Claim(ctx context.Context, id string) (*claim.Claim, error)
	// Reclaim is for a claim that was suspended: it waits until the id is the
	// caller's again. Its errors are those of Claim, and end the claim.
	Reclaim(ctx context.Context, c *claim.Claim) error
	// Check makes sure that the claim is still the caller's.
	// claim.ErrSuspended: that is not known, so Reclaim it.
	Check(ctx context.Context, c *claim.Claim) error
	// Complete records the work durably, through outages, and ends the claim.
	// claim.ErrDone: another process has done and recorded it as well.
	Complete(c *claim.Claim) error
	// Release ends the claim, undone.
	Release(c *claim.Claim)
}

// Counter counts by the names of the contract, without the role's prefix.
type Counter interface {
	Count(name string)
}

// Pipeline handles the deliveries of one role. Set all fields. Log names the role.
type Pipeline struct {
	Handlers    map[string]Handler // by type
	Claims      Claimer
	RequireID   bool // without it, an event without an id is processed, too
	Counter     Counter
	Log         *slog.Logger
	MaxAttempts int
	Timeout     time.Duration // of one attempt
	Semaphore   Semaphore
}

// Semaphore bounds how many handlers run at once: one place each.
type Semaphore chan struct{}

// Handle processes one delivery until it is acknowledged or given up. After ctx
// has ended, because the delivery's channel is gone or the service stops, it waits
// for nothing but a handler that runs, and handlers run until handlerCtx ends.
func (p *Pipeline) Handle(ctx, handlerCtx context.Context, d Delivery) {
	e, err := event.Parse(d.Body())
	noID := errors.Is(err, event.ErrNoID)
	handler, handled := p.Handlers[e.Type]
	switch {
	case (err == nil || noID) && !handled:
		p.finish(d, e, "ignored", "ignored")
	case err != nil && (p.RequireID || !noID):
		p.malformed(ctx, d, err)
	default:
		if err := p.process(ctx, handlerCtx, d, e, handler); errors.Is(err, claim.ErrDone) {
			p.finish(d, e, "skipped", e.Type+"_skipped")
		}
	}
}

// process is the rule: claim, work, complete, acknowledge.
func (p *Pipeline) process(ctx, handlerCtx context.Context, d Delivery, e event.Event, handler Handler) error {
	c, err := p.Claims.Claim(ctx, e.ID)
	if err != nil {
		return err
	}
	// A crash here: the event waits for CLAIM_TTL, then another process works.
	if err := p.work(ctx, handlerCtx, c, e, handler); err != nil {
		return p.notDone(ctx, d, c, e, err)
	}
	// A crash here: the work is done again. Effects outside the service have this
	// one window; with the idempotency key and the token the receiver can close it.
	if err := p.Claims.Complete(c); err != nil {
		return err
	}
	// A crash here: the event is delivered again and skipped.
	p.finish(d, e, "processed", e.Type+"_ok")
	return nil
}

// finish counts and logs the outcome of an event, and acknowledges it.
func (p *Pipeline) finish(d Delivery, e event.Event, outcome, counter string) {
	p.Counter.Count(counter)
	p.Log.Info(outcome, "type", truncate(e.Type), "id", e.ID)
	d.Ack()
}

// notDone ends the claim of an event whose work was not done.
func (p *Pipeline) notDone(ctx context.Context, d Delivery, c *claim.Claim, e event.Event, err error) error {
	defer p.Claims.Release(c)
	if failed := new(failure); errors.As(err, &failed) {
		return p.failed(ctx, d, e, failed)
	}
	return err
}

// failed dead-letters an event whose handler has given up. The failure is not
// remembered: another copy of the event is tried anew.
func (p *Pipeline) failed(ctx context.Context, d Delivery, e event.Event, f *failure) error {
	if err := d.DeadLetter(ctx, Failure{Reason: ReasonFailed, Err: f.err, Attempts: f.attempts}); err != nil {
		return err
	}
	// A crash here, before the acknowledgement: it is dead-lettered twice.
	d.Ack()
	p.Counter.Count(e.Type + "_failed")
	p.logDead(ReasonFailed, e, f.err)
	return nil
}

// malformed dead-letters a message that is not an event.
func (p *Pipeline) malformed(ctx context.Context, d Delivery, parse error) {
	if err := d.DeadLetter(ctx, Failure{Reason: ReasonMalformed, Err: parse}); err != nil {
		return
	}
	// A crash here, before the acknowledgement: it is dead-lettered twice.
	d.Ack()
	p.Counter.Count("malformed")
	p.logDead(ReasonMalformed, event.Event{}, parse)
}

func (p *Pipeline) logDead(reason string, e event.Event, err error) {
	p.Log.Info("dead-lettered", "type", e.Type, "id", e.ID, "reason", reason, "error", truncate(err.Error()))
}

// maxLogged bounds in bytes what a message can write into a line of the log.
const maxLogged = 1 << 10

func truncate(s string) string {
	if len(s) <= maxLogged {
		return s
	}
	return s[:maxLogged] + "…"
}
