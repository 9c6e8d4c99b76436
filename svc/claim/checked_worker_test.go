package claim_test

import (
	"context"
	"errors"
	"math/rand/v2"
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
	unhook func() bool
	over   chan struct{} // closed after the end of Held was added to the history
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
			w.abandon(h)
			return
		case h.Held.Err() != nil && next < 50:
			w.suspended(h)
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
// claim was not granted.
func (w *worker) answered(id string, call time.Duration, c *claim.Claim, err error) *hold {
	o := operation{kind: granted, process: w.process, worker: w.number, call: call, returns: w.now()}
	switch {
	case errors.Is(err, claim.ErrDone):
		o.kind = skipped
		w.skipped(id)
	case err != nil:
		o.kind = withdrawn
	default:
		o.hold, o.token = w.newHold(), c.Token
	}
	w.add(id, o)
	if err != nil {
		return nil
	}
	h := &hold{Claim: c, number: o.hold, over: make(chan struct{})}
	h.alive.Store(int64(call))
	h.unhook = context.AfterFunc(c.Held, func() {
		w.note(h, suspended, time.Duration(h.alive.Load()))
		close(h.over)
	})
	return h
}

// note adds an operation under a claim that was called at since and returns now.
func (w *worker) note(h *hold, k kind, since time.Duration) {
	w.add(h.ID, operation{kind: k, process: w.process, worker: w.number, hold: h.number, call: since, returns: w.now()})
}

// suspended reports whether Held has ended. If so, the end is in the history; if not,
// it is not added later.
func (w *worker) suspended(h *hold) bool {
	if !h.unhook() {
		<-h.over
		return true
	}
	if h.Held.Err() == nil {
		return false
	}
	// Held has ended, but unhook has kept its function from running.
	w.note(h, suspended, time.Duration(h.alive.Load()))
	return true
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
			w.note(h, checked, since)
			h.alive.Store(int64(since))
		}
	}
}

func (w *worker) complete(h *hold) {
	o := operation{kind: recorded, process: w.process, worker: w.number, hold: h.number, call: w.now()}
	if h.Held.Err() == nil {
		h.alive.Store(int64(o.call))
	}
	err := w.claims.Complete(h.Claim)
	o.returns = w.now()
	switch {
	case errors.Is(err, claim.ErrDone):
		o.kind = twice
	case errors.Is(err, claim.ErrClosed):
		o.kind, o.returns = lost, unknown
	case err != nil:
		w.t.Errorf("complete id %s: %v", h.ID, err)
	}
	w.add(h.ID, o)
	if !w.suspended(h) && o.kind == lost {
		w.note(h, abandoned, o.call)
	}
}

func (w *worker) release(h *hold) {
	since := w.now()
	over := w.suspended(h)
	w.claims.Release(h.Claim)
	if !over {
		w.note(h, released, since)
	}
}

// abandon ends the work in the way a crash of the process does.
func (w *worker) abandon(h *hold) {
	if !w.suspended(h) {
		w.note(h, abandoned, time.Duration(h.alive.Load()))
	}
}
