package claim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func (x *run) fail(format string, args ...any) {
	if x.violation == "" {
		x.violation = fmt.Sprintf(format, args...)
	}
}

func (x *run) unreadable(err error) {
	if err != nil {
		x.fail("keys cannot be read: %v", err)
	}
}

// check checks the invariants that hold in every state.
func (x *run) check() {
	for id, t := range x.etcd.truth[x.etcd.revision] {
		if n := x.etcd.recorded[id]; n > x.works[id]+x.etcd.expired[id] {
			x.fail("%s became done %d times with its work done %d times", id, n, x.works[id])
		}
		if t.records > 1 {
			x.fail("%d records of %s count", t.records, id)
		}
		if n := x.workers(id); n > 1 {
			x.fail("%d deliveries work on %s at once", n, id)
		}
		if x.works[id] > 1+x.etcd.ended[id] && !x.hurt {
			x.fail("the work on %s was done %d times without a crash or a suspension", id, x.works[id])
		}
	}
	for _, p := range x.processes { // two processes at one revision agree
		for id, want := range x.etcd.truth[p.view] {
			if got := truthOf(p.c.view, id); got.String() != want.String() {
				x.fail("%c sees %s %v at revision %d, want %v", p.name, id, got, p.view, want)
			}
		}
	}
}

// workers counts the deliveries that work on id under a session that is not suspended.
func (x *run) workers(id string) (n int) {
	for _, p := range x.processes {
		for _, d := range p.deliveries {
			if d.id == id && (d.phase == working || d.phase == checking) && d.claim.Held.Err() == nil {
				n++
			}
		}
	}
	return n
}

// checkWrite checks that a process lists no id twice, and none while it is suspended, that it takes ids off
// each claim that it rewrites, that it puts a window once, and records what is finished or was in the record
// that it replaces.
func (x *run) checkWrite(p *simProcess, w *write) {
	for key, k := range x.etcd.keys {
		if strings.HasPrefix(key, "claim/"+w.Session+"/") && slices.ContainsFunc(w.Claim, func(id string) bool { return slices.Contains(k.ids, id) }) {
			x.fail("%+v claims ids that %s lists: %q", w, key, k.ids)
		}
	}
	for _, left := range w.Left {
		if key := x.etcd.paths.claimPath(w, left.N); len(left.IDs) >= len(x.etcd.keys[key].ids) && x.etcd.keys[key].version > 0 {
			x.fail("%+v takes nothing off %s", w, key)
		}
	}
	record := x.etcd.past[p.view][x.etcd.paths.recordPath(w)].ids
	unfinished := func(id string) bool {
		return !slices.Contains(record, id) && (p.c.entries[id] == nil || !p.c.entries[id].finished)
	}
	_, window := x.etcd.past[p.view]["window/"+w.Window.Name]
	if len(w.Done) > 0 && x.etcd.lives(w.Window.Lease) && (window == w.NewWindow || slices.ContainsFunc(w.Done, unfinished)) {
		x.fail("%+v puts a window that it sees, or records ids that are not finished, to %q", w, record)
	}
	if suspended := len(w.Claim) > 0 && p.suspended(); suspended || len(w.Claim)+len(w.Left)+len(w.checks) == 0 {
		x.fail("%+v is empty, or claims ids while suspended: %t", w, suspended)
	}
}

// checkGrant checks that the token grows with each new owner, and that a claim keeps
// its token while its session lives.
func (x *run) checkGrant(p *simProcess, d *simDelivery) {
	now := grant{revisionOf(d.claim.Token), p.c.view.session}
	last := x.tokens[d.id]
	if now.token < last.token || now.token == last.token && now.session != last.session || d.last.session == now.session && d.last != now {
		x.fail("%s was granted with %+v after %+v, to this delivery %+v", d.id, now, last, d.last)
	}
	x.tokens[d.id], d.last = now, now
}

// checkSkipped checks that the id of a skipped delivery was recorded.
func (x *run) checkSkipped(d *simDelivery) {
	if x.etcd.recorded[d.id] == 0 {
		x.fail("%s is skipped, and was never recorded", d.id)
	}
}

// checkRecorded checks that work reported as recorded was recorded, and whether by its process.
func (x *run) checkRecorded(p *simProcess, d *simDelivery, err error) {
	if err != nil && !errors.Is(err, ErrDone) {
		x.fail("complete of %s: %v", d.id, err)
	}
	x.checkSkipped(d)
	if err == nil {
		x.completed[d.id]++
	}
	if n := x.completed[d.id]; n > x.etcd.recorded[d.id] {
		x.fail("%d deliveries have recorded %s, which became done %d times", n, d.id, x.etcd.recorded[d.id])
	}
	others := func(session string) bool { return !slices.Contains(p.names, session) }
	if by := x.etcd.recordedBy[d.id]; err != nil && !slices.ContainsFunc(by, others) {
		x.fail("complete of %s says that another process recorded it; the sessions that did are %q", d.id, by)
	}
}

// checkEnd checks the invariants of a state in which only faults can happen.
func (x *run) checkEnd() {
	if x.acked != len(x.messages) {
		x.fail("stuck: %d of %d messages are acknowledged, %d wait for a process", x.acked, len(x.messages), len(x.queue))
	}
	for key, k := range x.etcd.keys {
		if len(k.ids) > 0 && x.etcd.leases[k.lease-1].session {
			x.fail("in the end %s lists %q", key, k.ids)
		}
	}
	for _, p := range x.processes {
		if d, e, due := len(p.deliveries), len(p.c.entries), len(p.c.due); d+e+due > 0 {
			x.fail("in the end %c has %d deliveries and %d entries, and %d to be written", p.name, d, e, due)
		}
	}
	for _, c := range x.over {
		if len(c.answer) > 0 {
			x.fail("a delivery of %s got another answer after its end: %v", c.ID, <-c.answer)
		}
	}
	for id := range x.etcd.truth[0] {
		if x.etcd.recorded[id] == 0 && x.dead == 0 {
			x.fail("in the end %s is neither recorded nor dead-lettered", id)
		}
	}
}

// truth is the state of an id according to the rule.
type truth struct {
	done    bool
	records int        // that count
	claims  []claimKey // that list the id, the oldest first
}

func (t truth) String() string {
	text := ""
	if t.done {
		text = "done "
	}
	for _, c := range t.claims {
		text += fmt.Sprintf("%s/%d@%d ", c.session, c.write, c.token)
	}
	return strings.TrimSuffix(text, " ")
}

// truthOf returns what a view says of an id.
func truthOf(s *roleState, id string) truth {
	t := truth{done: s.Done(id)}
	for _, c := range s.Claims(id) {
		t.claims = append(t.claims, *c)
	}
	return t
}

// rule computes the state of each id from the keys. It follows the text of the design
// and uses none of the explored code.
func (e *simEtcd) rule() map[string]truth {
	all := make(map[string]truth, len(e.ids))
	for _, id := range e.ids {
		var t truth
		for key, k := range e.keys {
			if !slices.Contains(k.ids, id) {
				continue
			}
			switch parts := strings.Split(key, "/"); parts[0] {
			case "done":
				if _, living := e.keys["window/"+parts[1]]; living && !e.forgotten(strings.TrimPrefix(key, "done/"), id) {
					t.done = true
					t.records++
				}
			case "claim":
				write, _ := strconv.ParseInt(parts[2], 10, 64)
				t.claims = append(t.claims, claimKey{session: parts[1], write: write, token: e.age(key, k)})
			}
		}
		slices.SortFunc(t.claims, func(a, b claimKey) int { return cmp.Compare(a.token, b.token) })
		all[id] = t
	}
	return all
}
