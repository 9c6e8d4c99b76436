package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/event"
)

// Handler makes one attempt at the work of an event. Nil means that it is done. An
// error, or a panic, is a failed attempt; there are up to Pipeline.MaxAttempts, unless
// the error is marked by one of the functions below. The work may be repeated after a
// crash: pass Key and Token on to what it changes. Calls are concurrent, and must return
// soon after ctx ends.
type Handler func(ctx context.Context, job Job) error

// Job is one attempt of the work.
type Job struct {
	event.Event
	Headers map[string]any // of the message, as sent, for reading only; nil: it has none
	Role    string
	Token   int64 // the claim's fencing token: grows with each new session that owns the id; 0 without etcd
	Attempt int   // from 1
}

// Key returns the idempotency key, such as "orders/123": the same for each attempt at the
// event and for each copy of it. It can stand in a header: bytes of the id other than visible
// ASCII, and % itself, are percent-encoded.
func (j Job) Key() string {
	key := []byte(j.Role + "/")
	for _, c := range []byte(j.ID) {
		if c > ' ' && c < 0x7f && c != '%' {
			key = append(key, c)
		} else {
			key = fmt.Appendf(key, "%%%02X", c)
		}
	}
	return string(key)
}

// Permanent marks an error that another attempt would not change.
func Permanent(err error) error { return &permanentError{err} }

// Unavailable marks an error that is not the event's fault: the work is retried
// until it is done, however long that takes, and no attempt is counted. Wait is
// the minimum pause before the next attempt; 0 leaves it to the backoff. If many events
// wait, the event is requeued instead, and may get a new token.
func Unavailable(err error, wait time.Duration) error { return &unavailableError{err, wait} }

// Unknown marks an error that leaves open whether the work was done. It is retried
// under the same claim even after the delivery's channel has closed, because to the
// receiver a new token means a new owner. The error may be Unavailable, too.
func Unknown(err error) error { return &unknownError{err} }

type permanentError struct{ error }
type unknownError struct{ error }
type unavailableError struct {
	error
	wait time.Duration
}

func (e *permanentError) Unwrap() error   { return e.error }
func (e *unknownError) Unwrap() error     { return e.error }
func (e *unavailableError) Unwrap() error { return e.error }

// errRequeued says that the event is at the end of the queue, and acknowledged.
var errRequeued = errors.New("requeued")

// work runs the handler until it is done or has failed for good, or the event is requeued
// because its work is Unavailable. A suspended claim is claimed again.
func (p *Pipeline) work(ctx, handlerCtx context.Context, d Delivery, c *claim.Claim, job Job, handler Handler) error {
	deliveryCtx, wait := ctx, newBackoff(100*time.Millisecond, 3*time.Second)
	outageWait := newBackoff(100*time.Millisecond, 20*time.Second) // 30 s at most, with the jitter
	var refused *refusal
	defer func() { p.refusals.leave(refused) }()
	for attempt := 1; ; {
		if c.Held.Err() != nil {
			if err := p.Claims.Reclaim(ctx, c); err != nil {
				return err
			}
		}
		job.Token, job.Attempt = c.Token, attempt
		err := p.attempt(ctx, handlerCtx, c, handler, job)
		_, permanent := errors.AsType[*permanentError](err)
		if err == nil || permanent {
			p.pass(refused)
		}
		if err == nil {
			return nil
		}
		_, unknown := errors.AsType[*unknownError](err)
		if unknown {
			ctx = handlerCtx // from now on only its end stops the retries: the work may have been done
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.Log.Debug("attempt failed", "type", truncate(job.Type), "id", job.ID, "attempt", attempt, "error", truncate(err.Error()))
		if c.Held.Err() != nil {
			continue // the suspension cancelled the attempt, which does not count
		}
		unavailable, outage := errors.AsType[*unavailableError](err)
		switch {
		case outage: // the attempt does not count
			if refused == nil {
				refused = &refusal{ctx: deliveryCtx, delivery: d, event: job.Event}
			}
			p.refuse(refused, err)
			if p.waitRefused(ctx, c.Held, refused, max(outageWait.NextBackOff(), unavailable.wait)) {
				return errRequeued
			}
		case attempt == p.MaxAttempts || permanent:
			// Only the owner dead-letters: another process may have done the work meanwhile.
			// If the claim is lost while the broker is slow to confirm, the event is
			// dead-lettered all the same.
			if check := p.Claims.Check(ctx, c); check == nil {
				return &Failure{ReasonFailed, err, attempt}
			} else if !errors.Is(check, claim.ErrSuspended) {
				return check
			}
		default:
			attempt++
			sleep(ctx, c.Held, wait.NextBackOff())
		}
	}
}

// attempt runs the handler once. It holds a slot only while the handler runs.
func (p *Pipeline) attempt(ctx, handlerCtx context.Context, c *claim.Claim, handler Handler, job Job) (err error) {
	select {
	case p.Semaphore <- struct{}{}:
		defer func() { <-p.Semaphore }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.Held.Done():
		return context.Cause(c.Held)
	}
	// select chooses at random if a context has ended and a slot is free.
	if ctx.Err() != nil || c.Held.Err() != nil {
		return cmp.Or(context.Cause(ctx), context.Cause(c.Held))
	}

	attempt := &attemptContext{handlerCtx: handlerCtx, held: c.Held, deadline: time.Now().Add(p.Timeout)}
	defer attempt.end()
	defer func() {
		if r := recover(); r != nil {
			p.Log.Error("the handler panicked", "id", job.ID, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler panicked: %v", r)
		}
	}()
	return handler(attempt, job)
}

func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: first, Multiplier: 2, MaxInterval: most, RandomizationFactor: 0.5}
}

// sleep waits for d, or until ctx or held ends.
func sleep(ctx, held context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-held.Done():
	case <-timer.C:
	}
}
