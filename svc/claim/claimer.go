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
	wake   chan struct{} // receives when there may be something to write
	closed chan struct{}

	mu      sync.Mutex
	state   *roleState
	entries map[string]*entry
	writer  writer
	checks  []*waiter

	validUntil time.Time       // the session lives that long; each renewal moves it on
	held       context.Context // of the claims that are granted now
	suspend    context.CancelCauseFunc
}

// entry is an id that deliveries of this process want or have, or that one of
// its claims still lists.
type entry struct {
	id      string
	waiting []*waiter // deliveries that want the id, in the order of asking
	holder  *Claim    // of the delivery that works; nil: none

	finished  chan error // not nil: the holder's work is done, and it waits for the record
	listing   *listing   // the claim key that lists the id; nil: none yet
	queued    bool       // to be recorded by a later write
	recording bool       // recorded by the pending write
}

func (e *entry) wanted() bool { return e.holder != nil || len(e.waiting) > 0 }

// waiter is a delivery that waits for an id, or for a write.
type waiter struct {
	ready chan struct{} // closed when there is an answer
	claim *Claim        // to grant
	entry *entry
	err   error
}

func (w *waiter) answer(err error) {
	w.err = err
	close(w.ready)
}

// newClaimer returns a claimer that follows state. It is suspended until
// a session begins.
func newClaimer(state *roleState) *claimer {
	c := &claimer{
		wake: make(chan struct{}, 1), closed: make(chan struct{}),
		state: state, entries: make(map[string]*entry),
	}
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
	w := c.ask(id)
	if err := c.wait(ctx, w); err != nil {
		return nil, err
	}
	return w.claim, nil
}

// ask adds a delivery that wants id.
func (c *claimer) ask(id string) *waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &waiter{ready: make(chan struct{}), claim: &Claim{ID: id}}
	if c.state.Done(id) {
		w.answer(ErrDone)
		return w
	}
	e := c.entries[id]
	if e == nil {
		e = &entry{id: id}
		c.entries[id] = e
		c.writer.wanted = append(c.writer.wanted, e)
		c.notify()
	}
	w.entry = e
	e.waiting = append(e.waiting, w)
	c.evaluate(e)
	return w
}

// Reclaim is for a claim whose Held has ended: it waits until the id is the
// caller's again, under the same token if the session goes on. The caller's work
// must have ended. Its errors are those of Claim; after an error the claim is not
// the caller's.
func (c *claimer) Reclaim(ctx context.Context, claim *Claim) error {
	return c.wait(ctx, c.askAgain(claim))
}

// askAgain puts the holder of a claim before all others that want its id.
func (c *claimer) askAgain(claim *Claim) *waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[claim.ID]
	w := &waiter{ready: make(chan struct{}), claim: claim, entry: e}
	e.holder = nil
	e.waiting = slices.Insert(e.waiting, 0, w)
	c.evaluate(e)
	return w
}

// wait waits for the answer to a waiter.
func (c *claimer) wait(ctx context.Context, w *waiter) error {
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
	case <-c.closed:
	}
	if !c.withdraw(w) {
		return w.err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrClosed
}

// withdraw ends a delivery's wait. It reports false if the answer is there already.
func (c *claimer) withdraw(w *waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-w.ready:
		return false
	default:
	}
	e := w.entry
	e.waiting = slices.DeleteFunc(e.waiting, func(other *waiter) bool { return other == w })
	c.unlist(e)
	return true
}

// Check makes sure, by a write of the session, that the claim is still the
// caller's. Otherwise it returns ErrSuspended, ErrClosed, or the cause of ctx's end.
func (c *claimer) Check(ctx context.Context, claim *Claim) error {
	w := c.askCheck()
	select {
	case <-w.ready:
		if claim.Held.Err() != nil { // the write was of a later session
			return ErrSuspended
		}
		return nil
	case <-claim.Held.Done():
		return ErrSuspended
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.closed:
		return ErrClosed
	}
}

// askCheck returns a waiter for the next write.
func (c *claimer) askCheck() *waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &waiter{ready: make(chan struct{})}
	c.checks = append(c.checks, w)
	c.notify()
	return w
}

// Complete records that the work is done, and waits for that through outages and
// the ends of sessions. ErrDone: another process has done it as well and recorded
// it first. ErrClosed: the outcome is unknown.
func (c *claimer) Complete(claim *Claim) error {
	select {
	case err := <-c.finish(claim):
		return err
	case <-c.closed:
		return ErrClosed
	}
}

// finish queues the id of a claim to be recorded. It returns the channel of the
// outcome.
func (c *claimer) finish(claim *Claim) <-chan error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[claim.ID]
	finished := make(chan error, 1)
	e.finished = finished
	c.evaluate(e)
	return finished
}

// Release gives the id back undone, to the next who asks.
func (c *claimer) Release(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[claim.ID]
	if e == nil || e.holder != claim {
		return
	}
	e.holder = nil
	c.evaluate(e)
	c.unlist(e)
}

// evaluate answers the deliveries of an entry as far as the state allows.
func (c *claimer) evaluate(e *entry) {
	if e.recording { // the answer to the write tells the outcome
		return
	}
	if c.state.Done(e.id) {
		c.end(e, ErrDone)
		return
	}
	if e.listing == nil {
		return
	}
	session, write, token := c.state.Owner(e.id)
	if session != c.writer.session || write != e.listing.write {
		return
	}
	switch {
	case e.queued: // it waits for its write
	case e.finished != nil:
		// Even while the session is suspended: the write has effect only if it lives.
		e.queued = true
		c.writer.finished = append(c.writer.finished, e)
		c.notify()
	case e.holder == nil && len(e.waiting) > 0 && c.valid():
		w := e.waiting[0]
		e.waiting = e.waiting[1:]
		e.holder = w.claim
		w.claim.Token, w.claim.Held = token, c.held
		w.answer(nil)
	}
}

// end tells the deliveries that wait that the id is done, and the one whose work
// is finished how its record went.
func (c *claimer) end(e *entry, recorded error) {
	for _, w := range e.waiting {
		w.answer(ErrDone)
	}
	e.waiting = nil
	if e.finished != nil {
		e.finished <- recorded
		e.finished, e.holder = nil, nil
	}
	c.unlist(e)
}

// unlist queues an id that no delivery wants any more to be taken off its claim.
func (c *claimer) unlist(e *entry) {
	switch {
	case e.wanted():
	case e.listing != nil:
		c.writer.markDirty(e.listing)
		c.notify()
	case c.entries[e.id] == e:
		delete(c.entries, e.id)
	}
}

func (c *claimer) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
