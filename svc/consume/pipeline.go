// Package consume is what happens to a delivery, from its body to its
// acknowledgement. It knows neither the broker nor the store.
//
//	parse ─▶ claim ─▶ work ─▶ complete ─▶ count, acknowledge
//	  │        ├ done ─▶ count skipped, acknowledge
//	  │        └ busy ─▶ wait, claim again
//	  └ malformed ─▶ dead-letter, acknowledge
//
// Whatever ends early is not acknowledged, and is delivered again.
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
	DeadLetter(ctx context.Context, l Letter) error
}

// Letter says why a message is dead-lettered.
type Letter struct {
	Reason   string // ReasonMalformed or ReasonFailed
	Err      error
	Attempts int // tries of the handler
}

const (
	ReasonMalformed = "malformed"
	ReasonFailed    = "failed"
)

// Claimer grants each id to one delivery at a time. ErrDone: it was processed.
// Any other error: ctx ended first.
type Claimer interface {
	Claim(ctx context.Context, id string) (*claim.Claim, error)
}

// Counter counts by the names of the contract, without the role's prefix.
type Counter interface {
	Count(name string)
}

// Pipeline handles the deliveries of one role. Set all fields.
type Pipeline struct {
	Service     string
	Handlers    map[string]Handler // by type
	Claims      Claimer
	RequireID   bool // without it, an event without an id is processed, too
	Counter     Counter
	Log         *slog.Logger
	MaxAttempts int
	Timeout     time.Duration // of one try
	Slots       Slots
}

// Slots bounds how many handlers run at once.
type Slots chan struct{}

// Handle sees one delivery to its end. When ctx ends, because its channel is
// gone or the service stops, it no longer waits for anything, but finishes the
// work that is running: that ends with the claim's own context.
func (p *Pipeline) Handle(ctx context.Context, d Delivery) {
	e, err := event.Parse(d.Body())
	noID := errors.Is(err, event.ErrNoID)
	handler, handled := p.Handlers[e.Type]
	switch {
	case (err == nil || noID) && !handled:
		p.settle(d, e, "ignored", "ignored")
	case err != nil && (p.RequireID || !noID):
		p.malformed(ctx, d, err)
	default:
		for errors.Is(p.process(ctx, d, e, handler), errClaimAgain) {
		}
	}
}

// errClaimAgain says that the claim went to another, or its session was lost.
var errClaimAgain = errors.New("claim again")

// process is the rule: claim, work, complete, acknowledge.
func (p *Pipeline) process(ctx context.Context, d Delivery, e event.Event, work Handler) error {
	c, err := p.Claims.Claim(ctx, e.ID)
	if errors.Is(err, claim.ErrDone) {
		return p.settle(d, e, "skipped", e.Type+"_skipped")
	}
	if err != nil {
		return err
	}
	// A crash here: the event waits for CLAIM_TTL, then another processes it.
	if err := p.work(ctx, c, e, work); err != nil {
		return p.notDone(ctx, d, c, e, err)
	}
	// A crash here: the work is done again. It is the one window that effects
	// outside have; the idempotency key and the token let the other side close it.
	if err := c.Complete(); err != nil {
		return claimAgainIf(errors.Is(err, claim.ErrLost), err)
	}
	// A crash here: the event is delivered again, and skipped.
	return p.settle(d, e, "processed", e.Type+"_ok")
}

// settle counts and logs what became of an event, and acknowledges it.
func (p *Pipeline) settle(d Delivery, e event.Event, outcome, counter string) error {
	p.Counter.Count(counter)
	p.Log.Info(outcome, "service", p.Service, "type", clip(e.Type), "id", e.ID)
	d.Ack()
	return nil
}

// notDone ends the claim of an event whose work was not done.
func (p *Pipeline) notDone(ctx context.Context, d Delivery, c *claim.Claim, e event.Event, err error) error {
	var failed *failure
	switch {
	case errors.As(err, &failed):
		return p.failed(ctx, d, c, e, failed)
	case errors.Is(err, claim.ErrSessionLost):
		c.Abandon()
		return errClaimAgain
	}
	// Stopping, or the channel is gone: the next to get the event may start.
	c.Release()
	return err
}

// failed dead-letters an event whose handler has given up. The failure is not
// remembered: another copy of the event is tried anew.
func (p *Pipeline) failed(ctx context.Context, d Delivery, c *claim.Claim, e event.Event, f *failure) error {
	defer c.Release()
	if err := d.DeadLetter(ctx, Letter{Reason: ReasonFailed, Err: f.err, Attempts: f.attempts}); err != nil {
		return err
	}
	// A crash here, before the acknowledgement: it is dead-lettered twice.
	d.Ack()
	p.Counter.Count(e.Type + "_failed")
	p.logDead(ReasonFailed, e, f.err)
	return nil
}

// malformed dead-letters what is not an event.
func (p *Pipeline) malformed(ctx context.Context, d Delivery, parse error) {
	if err := d.DeadLetter(ctx, Letter{Reason: ReasonMalformed, Err: parse}); err != nil {
		return
	}
	// A crash here, before the acknowledgement: it is dead-lettered twice.
	d.Ack()
	p.Counter.Count("malformed")
	p.logDead(ReasonMalformed, event.Event{}, parse)
}

func (p *Pipeline) logDead(reason string, e event.Event, err error) {
	p.Log.Info("dead-lettered", "service", p.Service, "type", e.Type, "id", e.ID, "reason", reason, "error", clip(err.Error()))
}

// mostLogged bounds in bytes what a stranger can write into a line of the log.
const mostLogged = 1 << 10

func clip(s string) string {
	if len(s) <= mostLogged {
		return s
	}
	return s[:mostLogged] + "…"
}

func claimAgainIf(again bool, err error) error {
	if again {
		return errClaimAgain
	}
	return err
}
