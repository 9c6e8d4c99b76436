package claim_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fail notes the first violation, and how it came about.
func (x *explorer) fail(format string, args ...any) {
	if x.violation == "" {
		x.violation = fmt.Sprintf(format, args...) + ", after:\n\t" + strings.Join(x.trace, "\n\t")
	}
}

// check holds the state against what must never be.
func (x *explorer) check() {
	oks, done := 0, 0
	disturbed := false
	for _, p := range x.processes {
		oks += p.counts["t_ok"]
		disturbed = disturbed || p.disturbed || p.crashed
	}
	var running []handled
	for i, h := range x.handled {
		switch h.state {
		case "running":
			if !h.by.crashed {
				running = append(running, h)
			}
		case "done":
			done++
		}
		// Tokens grow with the owner.
		if i > 0 && (h.token < x.handled[i-1].token || h.token == x.handled[i-1].token && h.by != x.handled[i-1].by) {
			x.fail("the token went from %d of %s to %d of %s", x.handled[i-1].token, x.handled[i-1].by.name, h.token, h.by.name)
		}
	}
	if len(running) > 1 && !running[0].by.disturbed {
		x.fail("two work at the same time, although no session has ended")
	}
	if done > 1 && !disturbed {
		x.fail("the work was done %d times, although no session has ended", done)
	}
	if oks > 1 {
		x.fail("ok was counted %d times", oks)
	}
}

// checkEnd holds the state against what must be when nothing happens any more.
func (x *explorer) checkEnd() {
	x.ends++
	done, failed, crashed, oks := 0, 0, 0, 0
	for _, h := range x.handled {
		switch h.state {
		case "running":
			if !h.by.crashed {
				x.fail("work is still running")
			}
		case "done":
			done++
		case "failed":
			failed++
		}
	}
	alive := 0
	for _, p := range x.processes {
		oks += p.counts["t_ok"]
		if p.crashed {
			crashed++
		} else {
			alive++
		}
	}
	if alive == 0 {
		return
	}
	for i, m := range x.messages {
		if !m.acked {
			x.fail("message %d is stuck", i)
		}
	}
	// A dead letter is an outcome, too, but only for the copy that failed.
	if done == 0 && failed < len(x.messages) {
		x.fail("the work was not done")
	}
	// A claim that has expired is completed in the place of an absent key. If
	// that answer is lost, too, nobody can tell its record from another's: the
	// event is skipped then, so that ok is never counted twice.
	excused := x.answerLost && slices.ContainsFunc(x.processes, func(p *simProcess) bool { return p.disturbed })
	if oks == 0 && crashed == 0 && failed < len(x.messages) && !excused {
		x.fail("ok was not counted")
	}
	for key, kv := range x.etcd.keys {
		if owner, claimed := x.owners[string(kv.Value)]; claimed {
			x.fail("%s is left claimed by %s, and nobody works on it", key, owner)
		}
	}
}

// state describes all that decides what can happen from here on. Revisions and
// leases are replaced by their ranks, so that runs which differ only in how
// often they asked are seen to be in the same state.
func (x *explorer) state(idle int) string {
	revisions := make(map[int64]bool)
	for _, kv := range x.etcd.keys {
		revisions[kv.CreateRevision], revisions[kv.ModRevision] = true, true
	}
	for _, h := range x.handled {
		revisions[h.token] = true
	}
	sorted := slices.Sorted(maps.Keys(revisions))
	rank := func(r int64) int64 { return int64(slices.Index(sorted, r)) }
	var b strings.Builder
	fmt.Fprint(&b, x.faultsLeft, idle, "|", x.etcd.describe(rank, func(v string) string {
		if name, claimed := x.owners[v]; claimed {
			return name
		}
		return "done"
	}))
	for _, p := range x.processes {
		fmt.Fprint(&b, "|", p.name, p.crashed, p.disturbed, p.leases, slices.Sorted(maps.Keys(p.lost)), p.counts, p.store.Holds())
		for _, c := range p.pending() {
			fmt.Fprint(&b, ";", c.what)
		}
	}
	for _, h := range x.handled {
		fmt.Fprint(&b, "|", h.by.name, h.state, rank(h.token))
	}
	for _, l := range x.late {
		fmt.Fprint(&b, "|", l.from.name, l.what)
	}
	for _, m := range x.messages {
		to := ""
		if m.to != nil {
			to = m.to.name
		}
		fmt.Fprint(&b, "|", m.acked, to)
	}
	return b.String()
}

// shorten makes a request readable: what it guards and what it does.
func shorten(request string) string {
	var parts []string
	for _, word := range []string{"create_revision:0", "create_revision:", "mod_revision:", "request_txn", "request_put", "request_range", "request_delete_range", "lease:"} {
		if n := strings.Count(request, word); n > 0 {
			parts = append(parts, fmt.Sprintf("%s×%d", strings.TrimPrefix(word, "request_"), n))
		}
	}
	return "(" + strings.Join(parts, " ") + ")"
}
