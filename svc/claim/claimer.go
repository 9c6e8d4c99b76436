package claim

import (
	"context"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// claimer claims ids for the deliveries of one process. It follows the view of the role,
// grants each id to one delivery at a time, and composes what the process's session writes
// next. It talks to no server: see [Etcd].
type claimer struct {
	wake chan struct{} // receives when there may be something to write

	mu      sync.Mutex
	closed  bool
	view    *roleState
	viewed  int64 // the revision of the view
	entries map[string]*entry
	due     []*entry // those about which there may be something to write

	// The writes of the session; see compose.go.
	pending   *write          // composed, and not shown by the view; nil: none
	sent      int64           // the number of the last write that was composed
	committed int64           // the revision at which that was committed; 0: unanswered
	window    recordWindow    // of the next record
	checks    []chan struct{} // each closed when the view shows the next write

	// The life of the session; see session.go.
	end        func(error)     // ends it; nil: it is over, or has not begun
	validUntil time.Time       // it lives that long; each renewal moves that on
	held       context.Context // of every claim that is granted now; replaced when a session begins or resumes
	suspend    context.CancelCauseFunc
}

// newClaimer returns a claimer that is suspended until a session begins.
func newClaimer() *claimer {
	c := &claimer{wake: make(chan struct{}, 1), view: newRoleState(""), entries: make(map[string]*entry)}
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
	case c.view.Done(id):
		claim.answer <- ErrDone
		return claim
	}
	e, known := c.entries[id]
	if !known {
		e = &entry{id: id, claims: c.view.Claims(id)}
		c.entries[id] = e
	}
	claim.entry, e.done, e.recorded = e, false, false
	e.waiting = append(e.waiting, claim)
	c.review(e)
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
	c.review(claim.entry)
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
	c.review(claim.entry)
	return true
}

// Check makes sure, by a write of the session, that the claim is still the
// caller's. Otherwise it returns the cause of Held's end, or of ctx's.
func (c *claimer) Check(ctx context.Context, claim *Claim) error {
	select {
	case <-c.requestWrite():
		return context.Cause(claim.Held) // nil, unless the claim was suspended meanwhile
	case <-claim.Held.Done():
		return context.Cause(claim.Held)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// requestWrite makes the session write even if it has nothing to write. The channel is closed
// when the view shows that. If the session ends first, it never is.
func (c *claimer) requestWrite() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
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

// finish notes that the work under a claim is done.
func (c *claimer) finish(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim.entry.finished = true
	if c.closed {
		claim.answer <- ErrClosed
		return
	}
	c.review(claim.entry)
}

// Release gives up the id without recording it. The next delivery that wants it may have
// it.
func (c *claimer) Release(claim *Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := claim.entry
	if e.holder != claim || e.finished {
		return
	}
	e.holder = nil
	c.review(e)
}

// inUse returns how many ids deliveries work on, or have finished without a
// record.
func (c *claimer) inUse() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.holder != nil {
			n++
		}
	}
	return n
}

// Remembered returns how many ids are known to be done.
func (c *claimer) Remembered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.done.living
}

// Sessions returns how many processes of the role live, as far as etcd knows. It is 0 while
// this process's session is suspended.
func (c *claimer) Sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.valid() {
		return 0
	}
	return len(c.view.sessions)
}

// HandledElsewhere reports whether another process of the role that lives handles a type of
// events.
func (c *claimer) HandledElsewhere(typ string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, session := range c.view.sessions {
		if name != c.view.session && slices.Contains(session.types, typ) {
			return true
		}
	}
	return false
}
