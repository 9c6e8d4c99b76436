package claim

import (
	"slices"
	"strings"
	"time"
)

// next returns the next write of the session, or nil if there is nothing to
// write. The previous one must have been answered.
func (c *claimer) next() *sessionWrite {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.writer
	if w.session == "" || w.pending != nil {
		return nil
	}
	n := &sessionWrite{Session: w.session, N: w.last + 1, Window: w.window, checks: c.checks}
	c.record(n)
	c.rewrite(n)
	if c.held.Err() == nil {
		c.list(n)
	}
	if len(n.Claim)+len(n.Left)+len(n.Done)+len(n.checks) == 0 {
		return nil
	}
	c.checks = nil
	w.pending = n
	return n
}

// record adds finished ids to the write, as long as it has room to take them off their
// claims.
func (c *claimer) record(n *sessionWrite) {
	w := &c.writer
	if w.windowed && w.window.over(time.Now()) {
		return // these ids were finished after the last call of needsWindow
	}
	bytes, rewritten := 0, 0
	for _, l := range w.dirty {
		rewritten += l.bytes
	}
	for len(w.finished) > 0 && len(n.recorded) < w.window.Room {
		e := w.finished[0]
		if e.stage != recordQueued { // another process has recorded it meanwhile
			w.finished = w.finished[1:]
			continue
		}
		if bytes += jsonSize(e.id); bytes > maxList {
			break
		}
		if l := e.listing; !l.dirty {
			w.markDirty(l)
			rewritten += l.bytes
		}
		if len(w.dirty) > maxClaims || rewritten > maxRewrite {
			break
		}
		e.stage = recordPending
		n.recorded = append(n.recorded, e)
		w.finished = w.finished[1:]
	}
	if len(n.recorded) == 0 {
		return
	}
	w.window.Room -= len(n.recorded)
	n.NewWindow = !w.windowed
	n.Done = ids(n.recorded)
	if merged := w.merge(n.Done); merged != nil {
		n.Done, n.MergedFrom = merged, w.small[0].write
	}
}

// merge returns the ids of the small records and of the next one, if it is time
// to merge them.
func (w *writer) merge(next []string) (merged []string) {
	if len(w.small) < maxMerged-1 || w.smallIDs+len(next) >= maxMergedIDs {
		return nil
	}
	for _, s := range w.small {
		merged = append(merged, s.ids...)
	}
	merged = append(merged, next...)
	bytes := 0
	for _, id := range merged {
		bytes += jsonSize(id)
	}
	if bytes > maxList {
		return nil
	}
	return merged
}

// rewrite takes ended ids off their claims: those that this write records, and those that
// no delivery wants any more.
func (c *claimer) rewrite(n *sessionWrite) {
	w := &c.writer
	bytes := 0
	for len(w.dirty) > 0 && len(n.Left) < maxClaims {
		l := w.dirty[0]
		if bytes += l.bytes; bytes > maxRewrite {
			break
		}
		w.dirty = w.dirty[1:]
		n.Left = append(n.Left, c.compact(l))
	}
}

// compact removes the entries that have ended from a listing.
func (c *claimer) compact(l *listing) remainder {
	left := remainder{N: l.write}
	l.bytes, l.dirty = 0, false
	l.entries = slices.DeleteFunc(l.entries, func(e *entry) bool {
		switch {
		case e.stage == recordPending: // by this write: it remains an entry until the answer
		case !e.wanted():
			delete(c.entries, e.id)
		default:
			left.IDs = append(left.IDs, e.id)
			l.bytes += jsonSize(e.id)
			return false
		}
		return true
	})
	return left
}

// list adds a claim of the ids that deliveries want.
func (c *claimer) list(n *sessionWrite) {
	w := &c.writer
	l := &listing{write: n.N}
	for len(w.wanted) > 0 {
		e := w.wanted[0]
		size := jsonSize(e.id)
		if l.bytes+size > maxList {
			break
		}
		w.wanted = w.wanted[1:]
		e.listing = l
		l.entries = append(l.entries, e)
		l.bytes += size
		n.Claim = append(n.Claim, e.id)
	}
}

func ids(entries []*entry) []string {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.id
	}
	return ids
}

// jsonSize bounds the length of an id in a JSON array, without encoding it.
func jsonSize(id string) int {
	if strings.ContainsFunc(id, isEscaped) {
		return len(`"",`) + len(`\u0000`)*len(id)
	}
	return len(`"",`) + len(id)
}

func isEscaped(r rune) bool {
	return r < ' ' || r == '"' || r == '\\' || r == '\u2028' || r == '\u2029'
}
