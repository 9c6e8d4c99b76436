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

// Handler does the work of an event, once. Nil means that it is done, an error
// that it is not, or that nobody can tell. When ctx ends it must return soon.
// It is called by many goroutines at once.
type Handler func(ctx context.Context, job Job) error

// Job is one try of the work.
type Job struct {
	event.Event
	Token   int64 // the claim's fencing token: grows with every owner of the id; 0 without etcd
	Attempt int   // from 1
}

// Final marks an error that another try would not change.
func Final(err error) error { return &finalError{err} }

// Outage marks an error that is not the event's fault: the work is tried again
// until it is done, however long that takes. Wait is the least time to wait
// until then; 0 leaves it to the backoff.
func Outage(err error, wait time.Duration) error { return &outageError{err, wait} }

// Unknown marks an error after which nobody can tell whether the work was done.
func Unknown(err error) error { return &unknownError{err} }

type unknownError struct{ error }
type finalError struct{ error }
type outageError struct {
	error
	wait time.Duration
}

func (e *unknownError) Unwrap() error { return e.error }
func (e *finalError) Unwrap() error   { return e.error }
func (e *outageError) Unwrap() error  { return e.error }

// failure is a handler that has given up.
type failure struct {
	attempts int
	err      error
}

func (f *failure) Error() string {
	return fmt.Sprintf("failed after %d attempts: %v", f.attempts, f.err)
}

// work tries the handler until it is done or has failed for good. It holds a
// slot only while the handler runs. A suspended claim is claimed again; an attempt
// that this has cancelled does not count.
func (p *Pipeline) work(ctx, handlerCtx context.Context, c *claim.Claim, e event.Event, handler Handler) error {
	wait := &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 3 * time.Second, RandomizationFactor: 0.5,
	}
	for attempt := 1; ; {
		err := p.attempt(ctx, handlerCtx, c, handler, Job{Event: e, Token: c.Token, Attempt: attempt})
		if err == nil {
			return nil
		}
		if errors.As(err, new(*unknownError)) {
			// It is tried again under this claim, with its token, even when the
			// delivery goes meanwhile: to the receiver another token means another
			// owner.
			ctx = handlerCtx
		}
		if err := cmp.Or(context.Cause(ctx), context.Cause(handlerCtx)); err != nil {
			return err
		}
		var pause time.Duration
		if c.Held.Err() == nil {
			pause = wait.NextBackOff()
			var away *outageError
			switch {
			case errors.As(err, &away):
				pause = max(pause, away.wait)
			case attempt == p.MaxAttempts || errors.As(err, new(*finalError)):
				// No event is dead-lettered under a claim that may be another's.
				if check := p.Claims.Check(ctx, c); check == nil {
					return &failure{attempt, err}
				} else if !errors.Is(check, claim.ErrSuspended) {
					return check
				}
			default:
				attempt++
			}
		}
		if err := sleep(ctx, handlerCtx, c.Held, pause); err == nil {
			continue
		} else if !errors.Is(err, claim.ErrSuspended) {
			return err
		}
		if err := p.Claims.Reclaim(ctx, c); err != nil {
			return err
		}
	}
}

// attempt runs the handler once, in a slot.
func (p *Pipeline) attempt(ctx, handlerCtx context.Context, c *claim.Claim, handler Handler, job Job) (err error) {
	select {
	case p.Slots <- struct{}{}:
		defer func() { <-p.Slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-handlerCtx.Done():
		return context.Cause(handlerCtx)
	case <-c.Held.Done():
		return context.Cause(c.Held)
	}
	if err := sleep(ctx, handlerCtx, c.Held, 0); err != nil { // a slot became free at the same time
		return err
	}
	attempt, cancel := context.WithTimeout(handlerCtx, p.Timeout)
	defer cancel()
	defer context.AfterFunc(c.Held, cancel)()
	defer func() {
		if r := recover(); r != nil {
			p.Log.Error("the handler panicked", "service", p.Service, "id", job.ID, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler panicked: %v", r)
		}
	}()
	return handler(attempt, job)
}

// sleep waits for d, or until one of the contexts ends.
func sleep(ctx, handlerCtx, held context.Context, d time.Duration) error {
	if err := cmp.Or(context.Cause(ctx), context.Cause(handlerCtx), context.Cause(held)); err != nil || d == 0 {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-handlerCtx.Done():
		return context.Cause(handlerCtx)
	case <-held.Done():
		return context.Cause(held)
	}
}
