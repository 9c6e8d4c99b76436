package claim

// evaluate answers the deliveries of an entry as far as the state allows.
func (c *claimer) evaluate(e *entry) {
	switch {
	case c.closed: // all are answered
	case e.recording: // the answer to the write tells the outcome
	case !e.finished && len(e.waiting) == 0: // no delivery waits
	case c.state.Done(e.id):
		c.end(e, ErrDone)
	default:
		c.grant(e)
	}
}

// grant queues the record of an entry's finished work, or lets the next delivery work,
// if the oldest claim of the id is this process's. The id is not done.
func (c *claimer) grant(e *entry) {
	switch {
	case e.listing == nil || e.queued || e.recording:
		return
	case e.finished:
	case e.holder != nil || len(e.waiting) == 0 || !c.valid():
		return
	}
	owner := c.state.Owner(e.id)
	if owner == nil || owner.session != c.writer.session || owner.write != e.listing.write {
		return
	}
	if e.finished {
		// Even while the session is suspended: the write has effect only if it lives.
		e.queued = true
		c.writer.finished = append(c.writer.finished, e)
		c.notify()
		return
	}
	e.holder, e.waiting = e.waiting[0], e.waiting[1:]
	e.holder.Token, e.holder.Held = owner.token, c.held
	e.holder.answer <- nil
}

// end tells the deliveries that wait that the id is done, and the one whose work
// is finished how its record went.
func (c *claimer) end(e *entry, recorded error) {
	for _, claim := range e.waiting {
		claim.answer <- ErrDone
	}
	e.waiting = nil
	if e.finished {
		e.holder.answer <- recorded
		e.finished, e.queued, e.holder = false, false, nil
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
