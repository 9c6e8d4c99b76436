package claim_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
)

// worker handles deliveries one after the other.
type worker struct {
	*run
	claims  *claim.Etcd
	network []*link
	process int
	number  int
}

// hold is a claim between its grant and the end of Held, or its release.
type hold struct {
	*claim.Claim
	number int
	alive  atomic.Int64 // the last time at which Held had not ended
	over   sync.Once    // its end is in the history
}

// deliver claims an id, works, and completes, releases or abandons the claim.
func (w *worker) deliver(ctx context.Context, id string) {
	waitCtx := ctx
	if rand.IntN(2) == 0 { // the delivery may be lost while it waits
		var cancel context.CancelFunc
		waitCtx, cancel = context.WithTimeout(ctx, between(0, ttl/4))
		defer cancel()
	}
	call := w.now()
	c, err := w.claims.Claim(waitCtx, id)
	for {
		h := w.answered(id, call, c, err)
		if h == nil {
			return
		}
		w.handle(ctx, h)
		switch next := rand.IntN(100); {
		case ctx.Err() != nil && !w.ending.Load() && next < 50:
			w.end(h, abandoned, time.Duration(h.alive.Load())) // in the way a crash of the process does
			return
		case h.Held.Err() != nil && next < 50:
			w.end(h, suspended, 0)
			call = w.now()
			err = w.claims.Reclaim(waitCtx, c)
		case next > 80:
			w.complete(h)
			return
		default:
			w.release(h)
			return
		}
	}
}

// answered adds the result of Claim or Reclaim to the history. It returns nil if the
// claim was not granted. A delivery that has ended while it waited has no part in the history.
func (w *worker) answered(id string, call time.Duration, c *claim.Claim, err error) *hold {
	if errors.Is(err, claim.ErrDone) {
		w.note(id, operation{kind: skipped, call: call})
	}
	if err != nil {
		return nil
	}
	h := &hold{Claim: c, number: int(w.holds.Add(1))}
	w.note(id, operation{kind: granted, hold: h.number, token: c.Token, call: call})
	h.alive.Store(int64(call))
	context.AfterFunc(c.Held, func() { w.end(h, suspended, 0) })
	return h
}

// note adds an operation of the worker to the history. It returns now, unless its outcome is unknown.
func (w *worker) note(id string, o operation) {
	o.process, o.worker, o.returns = w.process, w.number, max(o.returns, w.now())
	w.add(id, o)
}

// end adds the end of a hold to the history, unless it is there already: the end of Held, if that has
// ended, or else k, since then. With recorded it adds nothing else.
func (w *worker) end(h *hold, k kind, since time.Duration) {
	h.over.Do(func() {
		if h.Held.Err() != nil {
			k, since = suspended, time.Duration(h.alive.Load())
		}
		if k != recorded {
			w.note(h.ID, operation{kind: k, hold: h.number, call: since})
		}
	})
}

// handle does the work. It is slow now and then, and lasts while the claimer is cut off.
func (w *worker) handle(ctx context.Context, h *hold) {
	d := between(0, 8*time.Millisecond)
	if rand.IntN(20) == 0 {
		d = between(0, ttl/2)
	}
	for end := w.now() + d; w.now() < end || cutOff(w.network); pause(ctx, time.Millisecond) {
		now := w.now()
		if h.Held.Err() != nil || ctx.Err() != nil {
			return
		}
		h.alive.Store(int64(now))
	}
	if rand.IntN(10) == 0 {
		since := w.now()
		if w.claims.Check(ctx, h.Claim) == nil {
			w.note(h.ID, operation{kind: checked, hold: h.number, call: since})
			h.alive.Store(int64(since))
		}
	}
}

func (w *worker) complete(h *hold) {
	o, end := operation{kind: recorded, hold: h.number, call: w.now()}, recorded
	if h.Held.Err() == nil {
		h.alive.Store(int64(o.call))
	}
	err := w.claims.Complete(h.Claim)
	switch {
	case errors.Is(err, claim.ErrDone):
		o.kind = twice
	case errors.Is(err, claim.ErrClosed):
		o.kind, o.returns, end = lost, unknown, abandoned
	case err != nil:
		w.t.Errorf("complete id %s: %v", h.ID, err)
	}
	w.note(h.ID, o)
	w.end(h, end, o.call)
}

func (w *worker) release(h *hold) {
	since := w.now()
	w.claims.Release(h.Claim)
	w.end(h, released, since)
}
