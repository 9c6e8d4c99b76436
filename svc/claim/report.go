package claim

import (
	"context"
	"slices"
	"strings"
	"time"
)

// With these methods session.go and view.go report what they see of the session and of
// the state.

// valid reports whether the session may be assumed to live.
func (c *claimer) valid() bool { return c.held.Err() == nil && time.Now().Before(c.validUntil) }

// beginSession starts a new session, whose key exists with version 1. It will claim the ids
// that deliveries still want, or have finished.
func (c *claimer) beginSession(session string, validUntil time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.suspend(ErrSuspended)
	c.held, c.suspend = context.WithCancelCause(context.Background())
	c.validUntil = validUntil
	c.writer = writer{session: session, last: 1}
	c.checks = nil // their callers have seen the end of Held
	for _, e := range c.entries {
		e.listing, e.stage = nil, min(e.stage, workDone)
		if e.wanted() {
			c.writer.wanted = append(c.writer.wanted, e)
		} else {
			delete(c.entries, e.id)
		}
	}
	// In the same order each time, unlike the map's.
	slices.SortFunc(c.writer.wanted, func(a, b *entry) int { return strings.Compare(a.id, b.id) })
	c.notify()
}

// renewed notes that the session was renewed. A suspended session goes on, unless the
// answer took so long that the time is over already.
func (c *claimer) renewed(validUntil time.Time) (resumed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !time.Now().Before(validUntil):
		return false
	case c.valid():
		c.validUntil = validUntil
		return false
	}
	c.validUntil = validUntil
	if resumed = c.held.Err() != nil; resumed {
		c.held, c.suspend = context.WithCancelCause(context.Background())
	}
	for _, e := range c.entries {
		c.evaluate(e)
	}
	c.notify()
	return resumed
}

// suspendSession ends the contexts of all claims and grants nothing until renewed or
// beginSession.
func (c *claimer) suspendSession() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.suspend(ErrSuspended)
}

// suspendExpired suspends the session unless it was renewed meanwhile. It reports
// whether it did.
func (c *claimer) suspendExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held.Err() != nil || time.Now().Before(c.validUntil) {
		return false
	}
	c.suspend(ErrSuspended)
	return true
}

// apply applies changes to the state; see [roleState.Apply].
func (c *claimer) apply(changes []change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.state.Version(c.writer.session)
	var touched []*entry
	err := c.state.Apply(changes, func(id string, recorded bool) {
		if e := c.entries[id]; e != nil {
			e.done = e.done || recorded && c.state.Done(id)
			touched = append(touched, e)
		}
	})
	for _, e := range touched {
		c.evaluate(e)
	}
	if c.state.Version(c.writer.session) < seen { // others own its ids from this revision on
		c.doubtSession()
	}
	return err
}

// doubtSession suspends the claims of a session that is probably over, and forces a write,
// which shows whether it is.
func (c *claimer) doubtSession() {
	c.suspend(ErrSuspended)
	c.validUntil = time.Time{}
	c.forceWrite()
}

// rebuild replaces the state by one that was read anew. If it does not show a write of
// the session that was committed before, the session is over, or etcd was restored from a
// backup.
func (c *claimer) rebuild(state *roleState, session string, committed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if session == c.writer.session && state.Version(session) < committed {
		c.doubtSession()
	}
	c.state = state
	for _, e := range c.entries {
		e.done = state.Done(e.id)
		c.evaluate(e)
	}
}

// shown returns the last write of the session that the state shows, and whether it lacks
// one that is known to be committed. After the end of the session it lacks none.
func (c *claimer) shown() (write int64, lags bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	write = c.state.Version(c.writer.session)
	return write, write < c.writer.last && !c.validUntil.IsZero()
}

// writeIfWaiting forces a write if a delivery, or the record of finished work, waits for
// another process. Unless the view shows that write in time, it is read again: see shown.
func (c *claimer) writeIfWaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.stage == workDone || e.holder == nil && e.wanted() {
			c.forceWrite()
			return
		}
	}
}

// lastWrite returns the number of the last write that is known to be committed.
func (c *claimer) lastWrite() (session string, write int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writer.session, c.writer.last
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
	return c.state.done.living
}
