package claim

import (
	"fmt"
	"slices"
)

// run is one run of the exploration with two processes, an etcd and a broker.
type run struct {
	scenario
	etcd      *simEtcd
	processes [2]*simProcess
	net       []*simCopy
	queue     []string // messages that wait to be delivered
	sessions  int
	trace     []step
	violation string

	acked, dead int
	works       map[string]int   // by id, how often its work has finished
	completed   map[string]int   // by id, how often Complete has returned nil
	tokens      map[string]grant // by id, the last grant
	hurt        bool             // a crash or a suspension has happened
	over        []*Claim         // of the deliveries that have ended
}

type grant struct {
	token   int64
	session string
}

// newRun returns a run in the initial state.
func newRun(s scenario) *run {
	x := &run{scenario: s, etcd: newSimEtcd(slices.Compact(slices.Sorted(slices.Values(s.messages))), s.broken), queue: slices.Clone(s.messages)}
	x.works, x.completed, x.tokens = make(map[string]int), make(map[string]int), make(map[string]grant)
	for i := range x.processes {
		p := &simProcess{x: x, name: 'A' + i}
		x.processes[i] = p
		p.start()
	}
	x.processes[0].load() // it sees the other's session
	for i, id := range x.messages {
		if len(x.first) > 0 {
			x.processes[x.first[i]-'A'].deliver(slices.Index(x.queue, id))
		}
	}
	return x
}

// step is something that can happen next.
type step struct {
	process int // its name
	kind    string
	do      func()
}

func (s step) String() string { return fmt.Sprintf("%c %s", s.process, s.kind) }

// take takes a step.
func (x *run) take(s step) {
	x.trace = append(x.trace, s)
	s.do()
	for _, p := range x.processes {
		p.takeAnswers()
	}
	x.net = slices.DeleteFunc(x.net, x.etcd.isVoid)
}

// steps lists the steps that can happen next.
func (x *run) steps() (steps []step) {
	for _, p := range x.processes {
		from := len(steps)
		steps = p.steps(steps)
		if x.isLocal(p, steps[from:]) {
			return steps[from:]
		}
	}
	for _, w := range x.net {
		add := func(kind string, do func()) { steps = append(steps, step{w.from.name, kind, do}) }
		add("executes", func() {
			if answer, current := x.execute(w); current {
				w.from.answer(answer)
			}
		})
		if w.current() {
			add("executes, watches, gets the answer", func() {
				answer, current := x.execute(w)
				for current && w.from.view < x.etcd.revision {
					w.from.watch(1)
				}
				w.from.takeAnswers()
				if current && w.current() { // it has not seen the end of its session meanwhile
					w.from.answer(answer)
				}
			})
		}
	}
	for i, lease := range x.etcd.leases {
		renewed := func(p *simProcess) bool { return p.lease == int64(i+1) && !p.over && !p.suspended() }
		if lease.living && lease.session && !slices.ContainsFunc(x.processes[:], renewed) {
			steps = append(steps, step{'-', "a session expires", func() { x.etcd.end(int64(i + 1)) }})
		}
	}
	return steps
}

// isLocal reports whether a process can apply the next revision, and every other step
// that it can take commutes with the steps of the others. The others then wait. Steps
// that the checks can see, such as the end of work, are not local.
func (x *run) isLocal(p *simProcess, steps []step) bool {
	return p.view < x.etcd.revision &&
		!slices.ContainsFunc(steps, func(s step) bool { return s.kind != "watches" && s.kind != "catches up" && s.kind != "writes" }) &&
		!slices.ContainsFunc(x.net, func(w *simCopy) bool { return w.from == p && w.current() })
}

// faults lists the faults that can happen next.
func (x *run) faults() (faults []step) {
	add := func(kind string, do func()) { faults = append(faults, step{'-', kind, do}) }
	for _, p := range x.processes {
		from := len(faults)
		faults = p.faults(faults)
		if x.isLocal(p, p.steps(nil)) {
			return faults[from:]
		}
	}
	for _, w := range x.net {
		if w.current() {
			add("ANSWER LOST", func() {
				if _, current := x.execute(w); current {
					w.from.resend()
				}
			})
		}
	}
	for i, lease := range x.etcd.leases {
		if lease.living && !lease.session {
			add("WINDOW ENDS", func() { x.etcd.end(int64(i + 1)) })
		}
	}
	add("LEADER CHANGES", func() { // writes that were forwarded to the old leader may be late, and watches end without a leader
		for _, p := range x.processes {
			if p.sending != nil {
				p.resend()
			}
			p.load()
		}
	})
	for _, id := range x.etcd.ids {
		if x.etcd.truth[x.etcd.revision][id].done {
			add("FORGOTTEN", func() { x.etcd.forget(id) })
		}
	}
	return faults
}

// execute makes etcd carry out a copy of a write. current reports whether its process
// waits for the answer.
func (x *run) execute(w *simCopy) (answer simAnswer, current bool) {
	answer, whole := x.etcd.txn(w)
	if !whole {
		return answer, false
	}
	x.net = slices.DeleteFunc(x.net, func(other *simCopy) bool { return other == w })
	return answer, w.current()
}
