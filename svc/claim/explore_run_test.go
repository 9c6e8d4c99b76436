package claim

import (
	"fmt"
	"slices"
	"strings"
)

// run is one run of the exploration with two processes, an etcd and a broker.
type run struct {
	scenario
	explorer  *explorer
	etcd      *simEtcd
	processes [2]*simProcess
	net       []*simCopy
	queue     []string // messages that wait to be delivered
	sessions  int
	violation string

	acked, dead int
	works       map[string]int   // by id, how often its work has finished
	ended       map[string]int   // by id, how often it was done and then not: its window had ended, or it was forgotten
	expired     map[string]int   // by id, how many records that listed it have expired
	tokens      map[string]grant // by id, the last grant
	hurt        bool             // a crash or a suspension has happened
}

type grant struct {
	token   int64
	session string
}

func (x *run) newState(session string) *roleState { return x.explorer.states.get(session) }

func (x *run) newSession() string {
	x.sessions++
	return fmt.Sprintf("s%d", x.sessions)
}

// begin makes the initial state of every run.
func (x *run) begin() {
	x.etcd = newSimEtcd(x.ids(), x.broken)
	x.queue = slices.Clone(x.messages)
	x.works, x.ended, x.expired = make(map[string]int), make(map[string]int), make(map[string]int)
	x.tokens = make(map[string]grant)
	for i := range x.processes {
		p := &simProcess{x: x}
		x.processes[i] = p
		p.start()
	}
	for _, p := range x.processes {
		p.load()
	}
	for i, id := range x.messages {
		if len(x.first) > 0 {
			x.processes[x.first[i]-'A'].deliver(slices.Index(x.queue, id))
		}
	}
}

// take carries out a step.
func (x *run) take(s step) {
	p := x.processes[s.p]
	switch s.kind {
	case deliverStep:
		p.deliver(int(s.i))
	case endSessionStep:
		p.endSession()
	case executeStep:
		if w, answer := x.execute(int(s.i)); w != nil {
			w.from.answer(answer)
		}
	case executeLateStep:
		if w, answer := x.execute(int(s.i)); w != nil {
			for w.from.view < x.etcd.revision {
				w.from.watch(1)
			}
			w.from.takeAnswers()
			if w.current() { // it has not seen the end of its session meanwhile
				w.from.answer(answer)
			}
		}
	case answerLostStep:
		if w, _ := x.execute(int(s.i)); w != nil {
			w.from.resend()
		}
	case writeStep:
		p.write()
	case watchStep:
		p.watch(1)
	case catchUpStep: // an answer of the watch may have several revisions
		p.watch(x.etcd.revision - p.view)
	case closedStep:
		p.load()
	case finishStep:
		p.finish(p.deliveries[s.i])
	case cancelledStep:
		p.cancelled(p.deliveries[s.i])
	case releaseStep:
		p.release(p.deliveries[s.i])
	case renewStep:
		p.renew()
	case expireStep:
		x.etcd.end(int64(s.i))
	case suspendStep:
		x.hurt = true
		p.c.suspendSession()
	case crashStep:
		x.hurt = true
		p.crash()
	case resendStep:
		p.resend()
	case windowStep:
		x.endWindow(int64(s.i))
	case forgetStep:
		x.forget(x.etcd.ids[s.i])
	case channelStep:
		p.loseChannel(p.deliveries[s.i])
	case failStep:
		p.fail(p.deliveries[s.i])
	case leaderStep: // writes that were forwarded to the old leader may be late, and watches end without a leader
		for _, p := range x.processes {
			if p.sending != nil {
				p.resend()
			}
			p.load()
		}
	}
	for _, p := range x.processes {
		p.takeAnswers()
	}
	x.net = slices.DeleteFunc(slices.Clone(x.net), x.etcd.isVoid)
}

// execute makes etcd carry out a copy of a write. It returns the copy if its process
// waits for the answer, and otherwise nil.
func (x *run) execute(i int) (*simCopy, simAnswer) {
	w := x.net[i]
	answer, err := x.etcd.txn(w)
	if err == errHalf {
		return nil, answer
	}
	x.net = slices.Delete(slices.Clone(x.net), i, i+1)
	if !w.current() {
		return nil, answer
	}
	return w, answer
}

// endWindow ends a window with its records, whether they count or were forgotten.
func (x *run) endWindow(lease int64) {
	before := x.etcd.truth[x.etcd.revision]
	for key, k := range x.etcd.keys {
		if k.lease == lease && strings.HasPrefix(key, "done/") {
			for _, id := range k.ids {
				x.expired[id]++
			}
		}
	}
	x.etcd.end(lease)
	for id, t := range x.etcd.truth[x.etcd.revision] {
		if before[id].done && !t.done {
			x.ended[id]++
		}
	}
}

// forget simulates an operator who forgets an id that is done.
func (x *run) forget(id string) {
	x.etcd.forget(id)
	x.ended[id]++
}
