package claim

import (
	"context"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// claimer claims ids for the deliveries of one process. It follows the state of
// the role, decides what the process's session writes next, and grants each id to
// one delivery at a time. It talks to no server: see [Etcd].
type claimer struct {
	wake chan struct{} // receives when there may be something to write

	mu      sync.Mutex
	closed  bool
	state   *roleState
	entries map[string]*entry
	writer  writer
	checks  []chan struct{} // each closed when the next write of the session is committed

	validUntil time.Time       // the session lives that long; each renewal moves it on
	held       context.Context // of every claim that is granted now; replaced when a session begins or resumes
	suspend    context.CancelCauseFunc
}

// entry is an id that deliveries of this process want or have, or that one of
// its claims still lists.
//
//	wanted ──write──▶ listed ──granted──▶ held ──Complete──▶ workDone ──▶ recordQueued ──write──▶ recordPending
type entry struct {
	id      string
	waiting []*Claim // of the deliveries that want the id, in the order of asking
	holder  *Claim   // of the delivery that works, or waits for its record; nil: none
	stage   stage    // of the holder's work
	listing *listing // the claim key that lists the id; nil: none yet
	done    bool     // by the state; cached, because a look-up among many ids is slow
}

// stage says how far the work on an id has come.
type stage byte

const (
	unfinished    stage = iota
	workDone            // to be recorded when the id is this process's
	recordQueued        // to be recorded by a later write
	recordPending       // recorded by the pending write
)

func (e *entry) wanted() bool { return e.holder != nil || len(e.waiting) > 0 }

// newClaimer returns a claimer that follows state. It is suspended until
// a session begins.
func newClaimer(state *roleState) *claimer {
	c := &claimer{wake: make(chan struct{}, 1), state: state, entries: make(map[string]*entry)}
	c.held, c.suspend = context.WithCancelCause(context.Background())
	c.suspend(ErrSuspended)
	return c
}

// Claim waits until id is the caller's. It returns ErrDone if the id was
// processed, ErrInvalidID, ErrClosed, or the cause of ctx's end.
func (c *claimer) Claim(ctx context.Context, id string) (*Claim, error) {
	if len(id) > maxID || !utf8.ValidString(id) {
		return nil, ErrInvalidID
	}
	claim := c.enqueue(id)
	if err := c.wait(ctx, claim); err != nil {
		return nil, err
	}
	return claim, nil
}

// enqueue returns the claim of a delivery that wants id, to be granted.
func (c *claimer) enqueue(id string) *Claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim := &Claim{ID: id, answer: make(chan error, 1)}
	switch {
	case c.closed:
		claim.answer <- ErrClosed
		return claim
	case c.state.Done(id):
		claim.answer <- ErrDone
		return claim
	}
	e, known := c.entries[id]
	if !known {
		e = &entry{id: id}
		c.entries[id] = e
		c.writer.wanted = append(c.writer.wanted, e)
		c.notify()
	}
	claim.entry, e.done = e, false
	e.waiting = append(e.waiting, claim)
	if known {
		c.evaluate(e)
	}
	return claim
}

// Reclaim is for a claim whose Held has ended: it waits until the id is the
// caller's again, under the same token if the session goes on. The caller's work
// must have ended. Its errors are those of Claim; after an error the claim is not
// the caller's.
func (c *claimer) Reclaim(ctx context.Context, claim *Claim) error {
	c.requeue(claim)
	return c.wait(ctx, claim)
}

// requeue puts the holder of a claim before all others that want its id.
func (c *claimer) requeue(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim.entry.holder = nil
	if c.closed {
		claim.answer <- ErrClosed
		return
	}
	claim.entry.waiting = slices.Insert(claim.entry.waiting, 0, claim)
	c.evaluate(claim.entry)
}

// wait waits for the answer to a delivery that wants an id.
func (c *claimer) wait(ctx context.Context, claim *Claim) error {
	select {
	case err := <-claim.answer:
		return err
	case <-ctx.Done():
		if c.withdraw(claim) {
			return context.Cause(ctx)
		}
		return <-claim.answer
	}
}

// withdraw ends a delivery's wait. It reports false if the answer is there already.
func (c *claimer) withdraw(claim *Claim) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if claim.entry == nil {
		return false
	}
	i := slices.Index(claim.entry.waiting, claim)
	if i < 0 {
		return false
	}
	claim.entry.waiting = slices.Delete(claim.entry.waiting, i, i+1)
	c.unlist(claim.entry)
	return true
}

// Check makes sure, by a write of the session, that the claim is still the
// caller's. Otherwise it returns the cause of Held's end, or of ctx's.
func (c *claimer) Check(ctx context.Context, claim *Claim) error {
	select {
	case <-c.requestCheck():
		return context.Cause(claim.Held) // nil, unless the claim was suspended meanwhile
	case <-claim.Held.Done():
		return context.Cause(claim.Held)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// requestCheck returns a channel that is closed when the next write of the session is
// committed. If the session ends first, it never is.
func (c *claimer) requestCheck() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.forceWrite()
}

// forceWrite makes the session write even if it has nothing else to write. The channel is
// closed when that is committed.
func (c *claimer) forceWrite() chan struct{} {
	check := make(chan struct{})
	c.checks = append(c.checks, check)
	c.notify()
	return check
}

// Complete records that the work is done, and waits for that through outages and
// the ends of sessions. ErrDone: another process has done it as well and recorded
// it first. ErrClosed: the outcome is unknown.
func (c *claimer) Complete(claim *Claim) error {
	c.finish(claim)
	return <-claim.answer
}

// finish queues the id of a claim to be recorded.
func (c *claimer) finish(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim.entry.stage = workDone
	if c.closed {
		claim.answer <- ErrClosed
		return
	}
	c.evaluate(claim.entry)
}

// Release gives up the id without recording it. The next delivery that wants it may have
// it.
func (c *claimer) Release(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := claim.entry
	if e.holder != claim || e.stage != unfinished {
		return
	}
	e.holder = nil
	c.evaluate(e)
	c.unlist(e)
}

func (c *claimer) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
