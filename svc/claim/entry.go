package claim

// entry is an id that deliveries of this process want, or that a claim of its session lists.
// What the session writes about the id is a function of what the deliveries want and of what
// the view shows: see [entry.next].
type entry struct {
	id string

	// What the deliveries want.
	waiting  []*Claim // those that want the id, in the order of asking
	holder   *Claim   // the one that works, or whose work has finished; nil: none
	finished bool     // the holder's work is done: it is to be recorded

	// What the view shows, refreshed with each change that names the id: a look-up among
	// many ids is slow.
	claims   []*claimKey // that list the id, the oldest first
	done     bool
	recorded bool // by the session of this process

	pending bool // the pending write lists the id, or takes it off its claim
	due     bool // it is in claimer.due
}

// todo is what a session is to write about an id.
type todo byte

const (
	wait    todo = iota // nothing now: a change in the view or a delivery's call comes first
	drop                // nothing ever: the entry is over
	list                // list the id in a new claim
	takeOff             // take it off its claim
	record              // record that it is done, and take it off its claim
)

// next returns what the session is to write about the id.
func (e *entry) next(session string) todo {
	mine := e.claimOf(session)
	wanted := e.holder != nil || len(e.waiting) > 0
	switch {
	case e.pending:
		return wait
	case !wanted && mine == nil:
		return drop
	case !wanted:
		return takeOff
	case mine == nil:
		return list
	case e.finished && !e.done && mine == e.claims[0]:
		return record
	}
	return wait
}

// claimOf returns the claim of a session that lists the id, or nil. There is one at most.
func (e *entry) claimOf(session string) *claimKey {
	for _, claim := range e.claims {
		if claim.session == session {
			return claim
		}
	}
	return nil
}

// isOver reports whether a session is over, by the version of its key in a view of that
// revision. sent is the number of the last write that it sent, and committed the revision at
// which that was committed, or 0 while it is unanswered.
func isOver(version, revision, sent, committed int64) bool {
	switch {
	case version == sent: // the view shows the write
		return false
	case version == sent-1 && committed == 0: // it may still be carried out
		return false
	}
	return revision >= committed // otherwise the view is older
}
