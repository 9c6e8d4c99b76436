package claim

import "slices"

// evaluate answers the deliveries of an entry, or queues the record of its finished work,
// as far as the state allows.
func (c *claimer) evaluate(e *entry) {
	switch {
	case c.closed: // all are answered
		return
	case e.stage == recordPending: // the answer to the write tells the outcome
		return
	case e.stage == unfinished && len(e.waiting) == 0: // no delivery waits
		return
	case e.done:
		c.answerDone(e, ErrDone)
		return
	}
	owner := c.state.Owner(e.id)
	if owner == nil || owner.session != c.writer.session || e.listing == nil || owner.write != e.listing.write {
		return
	}
	switch {
	case e.stage == workDone:
		// Even while the session is suspended: the write has effect only if it lives.
		e.stage = recordQueued
		c.writer.finished = append(c.writer.finished, e)
		c.notify()
	case e.holder == nil && c.valid():
		e.holder, e.waiting = e.waiting[0], e.waiting[1:]
		e.holder.Token, e.holder.Held = owner.token, c.held
		e.holder.answer <- nil
	}
}

// answerDone tells the deliveries that wait that the id is done, and the one whose work is
// finished the outcome of its record.
func (c *claimer) answerDone(e *entry, outcome error) {
	for _, claim := range e.waiting {
		claim.answer <- ErrDone
	}
	e.waiting = nil
	if e.stage != unfinished {
		e.holder.answer <- outcome
		e.stage, e.holder = unfinished, nil
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
		c.writer.wanted = slices.DeleteFunc(c.writer.wanted, func(w *entry) bool { return w == e })
	}
}

// close makes all calls that wait, and those that follow, return ErrClosed, and ends Held
// of all claims: the session is not renewed any more.
func (c *claimer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.suspend(ErrClosed)
	for _, e := range c.entries {
		for _, claim := range e.waiting {
			claim.answer <- ErrClosed
		}
		e.waiting = nil
		if e.stage != unfinished { // it remains the holder: its record may have been written
			e.holder.answer <- ErrClosed
		}
	}
}
