package claim

import (
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
)

// The limits of a write. etcd allows 128 operations by default (--max-txn-ops; some
// installations set 64) and 1.5 MiB. etcd.Hint asks for 48 operations and 512 KiB: larger
// writes gain nothing.
const (
	maxID      = 10_000          // bytes; in JSON it grows sixfold at most
	maxClaims  = etcd.MaxOps - 5 // the session, the new claim, the window, the record, the range that it replaces
	maxList    = 64 << 10        // bytes of JSON of a new claim, and of a record
	maxRewrite = 128 << 10       // of the claims that are written again
)

// A key costs etcd far more than an id in it. So maxMerged records of fewer than
// maxMergedIDs ids together are replaced by one.
const (
	maxMerged    = 64
	maxMergedIDs = 4096
)

// sessionWrite is one transaction of a session:
//
//	If    version(session/<s>) = N-1
//	Then  put session/<s>, and each of the following that is there
//	      put window/<w>, once for a window
//	      put claim/<s>/<N> = Claim
//	      put claim/<s>/<m> = ids that are left, or delete it, for each m of Left
//	      put done/<w>/<s>/<N> = Done, and delete done/<w>/<s>/<MergedFrom> up to it
//
// It is sent until its outcome is known. A copy that arrives late does not meet the
// condition. The content changes only if etcd refuses the write because its window has
// ended, so no copy of it was committed: then it moves to a new window.
type sessionWrite struct {
	Session    string
	N          int64
	Claim      []string
	Left       []remainder // earlier claims, some of whose ids have ended
	Window     recordWindow
	NewWindow  bool // its key is to be put
	Done       []string
	MergedFrom int64 // 0: the record replaces none

	recorded []*entry // those that wait for this record
	checks   []chan struct{}
}

// remainder is an earlier claim of the session with the ids that remain on it.
type remainder struct {
	N   int64
	IDs []string // empty: the key is to be deleted
}

// recordWindow is a window that ids are recorded in. Its records expire together.
type recordWindow struct {
	Name  string // the lease in hex, or forever; "": none
	Lease int64
	Until time.Time // no ids are recorded in it after that; zero: for ever
	Room  int       // how many more ids may be recorded in it
}

// forever is the window of ids that are never forgotten.
const forever = "forever"

// writer composes the writes of one session.
type writer struct {
	session  string
	last     int64         // number of the last write that is known to be committed
	pending  *sessionWrite // under way
	window   recordWindow
	windowed bool // the window's key exists
	wanted   []*entry
	finished []*entry      // to be recorded, if they are still queued
	dirty    []*listing    // some of their ids have ended
	small    []smallRecord // records that may be merged, of this session and window
	smallIDs int
}

// listing is one claim key of the session.
type listing struct {
	write   int64
	entries []*entry
	bytes   int
	dirty   bool // among the writer's dirty
}

func (w *writer) markDirty(l *listing) {
	if !l.dirty {
		l.dirty = true
		w.dirty = append(w.dirty, l)
	}
}

// smallRecord is a record that may be merged with others.
type smallRecord struct {
	write int64
	ids   []string
}

// backlog returns how many ids wait to be claimed or recorded.
func (c *claimer) backlog() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.writer.wanted) + len(c.writer.finished)
}

// needsWindow reports whether ids wait to be recorded and there is no window to
// record them in.
func (c *claimer) needsWindow(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.writer.window
	return len(c.writer.finished) > 0 && (w.Name == "" || w.Room <= 0 || w.over(now))
}

// over reports whether no more ids are recorded in the window.
func (w *recordWindow) over(now time.Time) bool { return !w.Until.IsZero() && !now.Before(w.Until) }

// setWindow sets the window of the records that follow. A write under way that was
// refused because its window has ended is moved to the new one.
func (c *claimer) setWindow(w recordWindow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writer.window, c.writer.windowed = w, false
	c.writer.small, c.writer.smallIDs = nil, 0
	if p := c.writer.pending; p != nil && len(p.recorded) > 0 {
		p.Window, p.NewWindow = w, true
		p.Done, p.MergedFrom = ids(p.recorded), 0
		c.writer.window.Room -= len(p.Done)
	}
}

// committed notes that the pending write was committed.
func (c *claimer) committed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.writer
	p := w.pending
	w.pending, w.last = nil, p.N
	for _, check := range p.checks {
		close(check)
	}
	if len(p.recorded) > 0 {
		w.windowed = true
		w.countSmall(p)
	}
	c.recordedAll(p)
}

// recordedAll tells the deliveries of a write that their ids are recorded.
func (c *claimer) recordedAll(p *sessionWrite) {
	for _, e := range p.recorded {
		e.listing = nil
		c.answerDone(e, nil)
	}
}

// countSmall remembers a record that may be merged. Records that are merged, or
// large enough together, are left alone.
func (w *writer) countSmall(p *sessionWrite) {
	if p.MergedFrom == 0 {
		w.small = append(w.small, smallRecord{p.N, p.Done})
		w.smallIDs += len(p.Done)
	}
	if p.MergedFrom > 0 || w.smallIDs >= maxMergedIDs || len(w.small) >= maxMerged {
		w.small, w.smallIDs = nil, 0
	}
}

// pending returns the write that is under way, or nil.
func (c *claimer) pending() *sessionWrite {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writer.pending
}

// recordExists notes, after the end of a session, that the record of its pending
// write exists: the write had been committed before.
func (c *claimer) recordExists() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordedAll(c.writer.pending)
	c.writer.pending = nil
}
