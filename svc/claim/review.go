package claim

import "slices"

// review answers the deliveries of an entry as far as the view allows, after a change of
// either, and notes whether there is something to write about the id.
func (c *claimer) review(e *entry) {
	if c.closed { // all are answered
		return
	}
	if e.done {
		c.answerDone(e)
	}
	if len(e.waiting) > 0 && e.holder == nil && !e.pending && c.owns(e) && c.valid() {
		e.holder, e.waiting = e.waiting[0], e.waiting[1:]
		e.holder.Token, e.holder.Held = e.claims[0].token, c.held
		e.holder.answer <- nil
	}
	switch e.next(c.view.session) {
	case wait:
	case drop:
		c.drop(e)
	default:
		if !e.due {
			e.due = true
			c.due = append(c.due, e)
		}
		c.notify()
	}
}

// owns reports whether the oldest claim that lists the id is of this process's session.
func (c *claimer) owns(e *entry) bool {
	return len(e.claims) > 0 && e.claims[0].session == c.view.session
}

// answerDone tells the deliveries that wait that the id is done, and the one whose work is
// finished the outcome.
func (c *claimer) answerDone(e *entry) {
	for _, claim := range e.waiting {
		claim.answer <- ErrDone
	}
	e.waiting = nil
	if !e.finished {
		return
	}
	if e.recorded {
		e.holder.answer <- nil
	} else {
		e.holder.answer <- ErrDone
	}
	e.holder, e.finished = nil, false
}

// drop forgets an entry that is over.
func (c *claimer) drop(e *entry) {
	if e.due {
		e.due = false
		c.due = slices.DeleteFunc(c.due, func(other *entry) bool { return other == e })
	}
	if c.entries[e.id] == e {
		delete(c.entries, e.id)
	}
}

// notify wakes the writer, unless the pending write has to be shown first.
func (c *claimer) notify() {
	if c.pending != nil {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
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
		if e.finished { // it remains the holder: its record may have been written
			e.holder.answer <- ErrClosed
		}
	}
}
