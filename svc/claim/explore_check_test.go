package claim

import (
	"errors"
	"fmt"
	"slices"
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
	head := x.etcd.truth[x.etcd.revision]
	for id, t := range head {
		if n := x.etcd.recorded[id]; n > x.works[id]+x.expired[id] {
			x.fail("%s became done %d times with its work done %d times", id, n, x.works[id])
		}
		if t.records > 1 {
			x.fail("%d records of %s count", t.records, id)
		}
		if n := x.workers(id); n > 1 {
			x.fail("%d deliveries work on %s at once", n, id)
		}
		if x.works[id] > 1+x.ended[id] && !x.hurt {
			x.fail("the work on %s was done %d times without a crash or a suspension", id, x.works[id])
		}
	}
	for i, p := range x.processes {
		x.checkView(i, p)
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

// checkView compares the state of a process with the rule at the revision that the
// process has seen. Therefore two processes at one revision agree.
func (x *run) checkView(i int, p *simProcess) {
	for id, want := range x.etcd.truth[p.view] {
		if got := p.c.view.Done(id); got != want.done {
			x.fail("%c sees %s done: %v at revision %d, want %v", 'A'+i, id, got, p.view, want.done)
		}
		var owner claimKey
		if claims := p.c.view.Claims(id); len(claims) > 0 && !want.done {
			owner = *claims[0]
		}
		token := revisionOf(owner.token)
		if owner.session != want.session || token != want.token || owner.session != "" && fmt.Sprintf("%016d", owner.write) != want.write {
			x.fail("%c sees %s owned by %s/%d with token %d at revision %d, want %+v", 'A'+i, id, owner.session, owner.write, token, p.view, want)
		}
	}
}

// checkGrant checks that the token grows with each new owner, and that a claim keeps
// its token.
func (x *run) checkGrant(p *simProcess, d *simDelivery) {
	now := grant{revisionOf(d.claim.Token), p.c.view.session}
	last := x.tokens[d.id]
	if now.token < last.token || now.token == last.token && now.session != last.session {
		x.fail("%s was granted with %+v after %+v", d.id, now, last)
	}
	x.tokens[d.id] = now
}

// checkSkipped checks that the id of a skipped delivery was recorded.
func (x *run) checkSkipped(p *simProcess, d *simDelivery) {
	if x.etcd.recorded[d.id] == 0 {
		x.fail("%s is skipped, and was never recorded", d.id)
	}
}

// checkRecorded checks that work reported as recorded was recorded, and whether by its process.
func (x *run) checkRecorded(p *simProcess, d *simDelivery, err error) {
	if err != nil && !errors.Is(err, ErrDone) {
		x.fail("complete of %s: %v", d.id, err)
	}
	x.checkSkipped(p, d)
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
	for i, p := range x.processes {
		if len(p.deliveries)+len(p.c.entries) > 0 {
			x.fail("in the end %c has %d deliveries and %d entries", 'A'+i, len(p.deliveries), len(p.c.entries))
		}
	}
	for id := range x.etcd.truth[0] {
		if x.etcd.recorded[id] == 0 && x.dead == 0 {
			x.fail("in the end %s is neither recorded nor dead-lettered", id)
		}
	}
}

// revisionOf undoes the change that simEtcd.event makes to tokens in a broken variant.
func revisionOf(token int64) int64 {
	if token > 1<<39 {
		return 1<<40 - token
	}
	return token
}

// truth is the state of an id according to the rule.
type truth struct {
	done    bool
	records int // that count
	session string
	write   string
	token   int64
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
			parts := strings.Split(key, "/")
			if parts[0] == "done" {
				_, living := e.keys["window/"+parts[1]]
				if living && !slices.Contains(e.keys["forget"+strings.TrimPrefix(key, "done")].ids, id) {
					t.done = true
					t.records++
				}
			} else if parts[0] == "claim" && (t.token == 0 || (k.created < t.token) != (e.broken == "the newest claim owns")) {
				t.session, t.write, t.token = parts[1], parts[2], k.created
			}
		}
		if t.done {
			t = truth{done: true, records: t.records}
		}
		all[id] = t
	}
	return all
}
