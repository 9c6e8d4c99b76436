package claim

import (
	"slices"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
)

// The limits of a write. etcd allows 128 operations by default (--max-txn-ops; some
// installations set 64) and 1.5 MiB. etcd.Hint asks for 48 operations and 512 KiB: larger
// writes gain nothing.
const (
	maxID      = 10_000          // bytes; in JSON it grows sixfold at most
	maxClaims  = etcd.MaxOps - 4 // besides the session, the window, the record and the new claim
	maxList    = 64 << 10        // bytes of JSON of a new claim, and of a record
	maxRewrite = 128 << 10       // of the claims that are written again
)

// A key costs etcd far more than an id in it, so ids are added to the session's last record
// until that lists smallRecord of them.
const smallRecord = 16

// write is one transaction of a session:
//
//	If    version(session/<s>) = N-1
//	Then  put session/<s>, and each of the following that is there
//	      put claim/<s>/<N> = Claim
//	      put claim/<s>/<m> = ids that are left, or delete it, for each m of Left
//	      put window/<w>, once for a window
//	      put done/<w>/<s>/<n> = Done, n being N or the number of a small record that it replaces
//
// It is sent until its outcome is known. A copy that arrives late does not meet the condition.
type write struct {
	Session   string
	N         int64
	Claim     []string
	Left      []remainder // earlier claims, some of whose ids have ended
	Window    recordWindow
	NewWindow bool // its key is to be put
	Done      []string
	Record    int64 // the number of the record's key

	entries  []*entry // those whose ids it lists or takes off
	checks   []chan struct{}
	sent     time.Time
	answered time.Time // zero: not yet
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

// compose returns the next write of the session, or nil if there is nothing to write, or the
// view does not show the previous write yet.
func (c *claimer) compose() *write {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil || c.pending != nil {
		return nil
	}
	now := time.Now()
	w := &write{Session: c.view.session, N: c.sent + 1, Window: c.window, checks: c.checks, sent: now}
	d := draft{write: w, suspended: c.held.Err() != nil}
	d.beginRecord(c.view.record, c.view.forgotten[c.view.record.recordName] != nil, now)
	later := c.due[:0]
	for _, e := range c.due {
		switch todo := e.next(w.Session); {
		case todo == wait || todo == drop:
			e.due = false
		case d.add(e, todo):
			e.due, e.pending = false, true
			w.entries = append(w.entries, e)
		default:
			later = append(later, e)
		}
	}
	clear(c.due[len(later):])
	c.due = later
	if len(w.entries)+len(w.checks) == 0 {
		return nil
	}
	if d.recorded == 0 {
		w.Done, w.Record = nil, 0
	}
	w.NewWindow = len(w.Done) > 0 && !c.view.done.lives(w.Window.Name)
	c.window.Room -= d.recorded
	c.remainders(&d)
	c.checks = nil
	c.pending, c.sent, c.committed = w, w.N, 0
	return w
}

// draft is a write that is being composed.
type draft struct {
	*write
	suspended bool // the session lists nothing new
	room      int  // how many more ids may be recorded
	recorded  int
	listBytes int      // of Claim
	doneBytes int      // of Done
	ending    []ending // the claims that ids are taken off
	rewritten int      // bytes of those
}

// ending is a claim that n ids are taken off.
type ending struct {
	*claimKey
	n int
}

// beginRecord makes the record of this write the session's last one, if that is small, or
// else a new one: also if ids of that one are forgotten, since it cannot list them again. No ids
// are recorded in a window whose time is over.
func (d *draft) beginRecord(last recordKey, forgotten bool, now time.Time) {
	if !d.Window.over(now) {
		d.room = d.Window.Room
	}
	d.Record = d.N
	bytes := 0
	for _, id := range last.ids {
		bytes += jsonSize(id)
	}
	if !forgotten && last.window == d.Window.Name && len(last.ids) < smallRecord && bytes < maxList/2 {
		d.Record, d.Done, d.doneBytes = last.write, slices.Clone(last.ids), bytes
	}
}

// add adds what is to be written about an entry. It reports whether there was room for it.
func (d *draft) add(e *entry, todo todo) bool {
	size := jsonSize(e.id)
	if todo == list {
		if d.suspended || d.listBytes+size > maxList {
			return false
		}
		d.listBytes += size
		d.Claim = append(d.Claim, e.id)
		return true
	}
	if todo == record && (d.recorded >= d.room || d.doneBytes+size > maxList) {
		return false
	}
	claim := e.claimOf(d.Session)
	i := slices.IndexFunc(d.ending, func(ending ending) bool { return ending.claimKey == claim })
	if i < 0 {
		if len(d.ending) == maxClaims || d.rewritten+claim.size > maxRewrite {
			return false
		}
		i = len(d.ending)
		d.ending = append(d.ending, ending{claimKey: claim})
		d.rewritten += claim.size
	}
	d.ending[i].n++
	if todo == record {
		d.recorded++
		d.doneBytes += size
		d.Done = append(d.Done, e.id)
	}
	return true
}

// remainders notes the ids that are left on the claims that ids are taken off.
func (c *claimer) remainders(d *draft) {
	for _, claim := range d.ending {
		left := remainder{N: claim.write}
		if claim.n < len(claim.ids) {
			for _, id := range claim.ids {
				if e := c.entries[id]; e != nil && !e.pending { // the session lists an id once, so this write takes off those that are pending
					left.IDs = append(left.IDs, id)
				}
			}
		}
		d.Left = append(d.Left, left)
	}
}

// committedAt notes the revision at which the pending write was committed.
func (c *claimer) committedAt(w *write, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.committed, w.answered = revision, time.Now()
	c.checkSession()
}

// undo takes back a write that was not carried out. It reports false if the view shows the
// write all the same.
func (c *claimer) undo(w *write) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != w {
		return false
	}
	c.checks = append(w.checks, c.checks...)
	c.sent, c.window = c.sent-1, recordWindow{}
	c.clearPending()
	for _, e := range w.entries {
		c.review(e)
	}
	c.notify()
	return true
}

// needsWindow reports whether ids wait to be recorded and there is no window to record them
// in.
func (c *claimer) needsWindow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil || c.window.Room > 0 && !c.window.over(time.Now()) {
		return false
	}
	return slices.ContainsFunc(c.due, func(e *entry) bool { return e.next(c.view.session) == record })
}

// setWindow sets the window of the records that follow.
func (c *claimer) setWindow(w recordWindow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window = w
}

// over reports whether no more ids are recorded in the window.
func (w *recordWindow) over(now time.Time) bool { return !w.Until.IsZero() && !now.Before(w.Until) }

// backlog returns about how many ids wait to be written.
func (c *claimer) backlog() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.due)
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
