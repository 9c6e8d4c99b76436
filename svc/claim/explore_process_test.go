package claim

import (
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// simProcess is one process: a real claimer, and the functions that connect it to
// etcd, divided into steps between which other things can happen.
type simProcess struct {
	x       *run
	c       *claimer
	view    int64 // the revision of the claimer's state
	lease   int64 // of the session
	over    bool  // Etcd.runSession has returned, and Etcd.endSession has not been called
	running bool  // Etcd.write is in its inner loop
	call    int   // number of Etcd.send's last call: answers to earlier calls are dropped

	deliveries []*simDelivery
}

// simCopy is a copy of a write on its way to etcd. Copies are carried out at any time
// and in any order, even long after their process has crashed.
type simCopy struct {
	sessionWrite
	from *simProcess
	c    *claimer // the claimer that sent it; a crash replaces the claimer of from
	call int
	half bool // carried out by half, in a broken variant
}

// current reports whether the process waits for the answer to this copy.
func (w *simCopy) current() bool { return w.c == w.from.c && w.call == w.from.call }

// start simulates NewEtcd, Load and the first part of Run.
func (p *simProcess) start() {
	*p = simProcess{x: p.x, c: newClaimer(p.x.newState())}
	p.load()
	p.open()
}

// load simulates Etcd.Load.
func (p *simProcess) load() {
	state := p.x.newState()
	p.x.unreadable(state.Apply(p.x.etcd.snapshot(), func(string, bool) {}))
	session, committed := p.c.lastWrite()
	p.c.rebuild(state, session, committed)
	p.view = p.x.etcd.revision
}

// watch simulates Etcd.applyChanges with the next n revisions.
func (p *simProcess) watch(n int64) {
	events := slices.Concat(p.x.etcd.log[p.view+1 : p.view+1+n]...)
	p.x.unreadable(p.c.state.checkNoGap(events))
	p.x.unreadable(p.c.apply(events))
	p.view += n
}

var farFuture = time.Now().Add(1000 * time.Hour)

// open simulates Etcd.open, and begins the session as Etcd.runSessions does.
func (p *simProcess) open() {
	p.lease = p.x.etcd.grant(true)
	name := p.x.newSession()
	p.x.etcd.commit([]change{p.x.etcd.put("session/"+name, "host 1", p.lease)})
	p.c.beginSession(name, farFuture)
	p.over = false
}

// end simulates the return of Etcd.runSession.
func (p *simProcess) end() {
	p.over, p.running = true, false
	p.call++
	p.c.suspendSession()
}

// endSession simulates Etcd.endSession and the next iteration of runSessions. The rebuild
// that is requested in between comes late, so the view sees the old session's end.
func (p *simProcess) endSession() {
	p.x.etcd.end(p.lease)
	if w := p.c.pending(); w != nil && len(w.Done) > 0 {
		if _, exists := p.x.etcd.keys[p.x.etcd.paths.recordPath(w, w.N)]; exists {
			p.c.recordExists()
		}
	}
	p.open()
}

// renew simulates an answer to Etcd.renew while the session is suspended.
func (p *simProcess) renew() {
	if !p.x.etcd.lives(p.lease) {
		p.end()
		return
	}
	p.c.renewed(farFuture)
}

// canWrite reports whether Etcd.write continues with a next write.
func (p *simProcess) canWrite() bool {
	if p.over || p.c.pending() != nil {
		return false
	}
	if w := &p.c.writer; len(w.wanted)+len(w.finished)+len(w.dirty)+len(p.c.checks) == 0 {
		p.running = false // next would return nil
		select {
		case <-p.c.wake:
		default:
		}
	}
	return p.running || len(p.c.wake) > 0
}

// write simulates one iteration of the inner loop of Etcd.write.
func (p *simProcess) write() {
	if !p.running {
		<-p.c.wake
		p.running = true
	}
	if p.c.needsWindow(time.Now()) {
		p.openWindow()
	}
	if p.c.next() == nil {
		p.running = false
		return
	}
	p.send()
}

// send simulates the first part of a call in Etcd.send.
func (p *simProcess) send() {
	p.call++
	p.resend()
}

// resend sends another copy for the same call.
func (p *simProcess) resend() {
	p.x.net = append(p.x.net, &simCopy{sessionWrite: *p.c.pending(), from: p, c: p.c, call: p.call})
}

// openWindow simulates Etcd.openWindow.
func (p *simProcess) openWindow() {
	lease := p.x.etcd.grant(false)
	p.c.setWindow(recordWindow{Name: leaseName(clientv3.LeaseID(lease)), Lease: lease, Room: 1 << 40})
}

// answer simulates Etcd.commit with the answer to a call.
func (p *simProcess) answer(a simAnswer) {
	switch {
	case a.leaseGone:
		if len(p.c.pending().Done) == 0 {
			p.end()
			return
		}
		p.openWindow()
		p.send()
		return
	case !a.succeeded:
		if a.version != p.c.pending().N {
			p.end()
			return
		}
	}
	p.call++ // answers to other copies are dropped
	p.c.committed()
}

// suspended reports whether the session is suspended.
func (p *simProcess) suspended() bool { return p.c.held.Err() != nil }

// oldID is in the first of the small records that nearMerge makes.
const oldID = "old"

// nearMerge gives the session so many small records that a later one is merged with them;
// see scenario.merge.
func (p *simProcess) nearMerge() {
	p.openWindow()
	w, e := &p.c.writer, p.x.etcd
	first := &sessionWrite{Session: w.session, N: 2, Window: w.window}
	events := []change{
		e.put("window/"+w.window.Name, "24h", w.window.Lease),
		e.put(e.paths.recordPath(first, 2), listJSON([]string{oldID}), w.window.Lease),
	}
	w.windowed, w.small, w.smallIDs = true, []smallRecord{{2, []string{oldID}}}, 1
	for w.last = 2; w.last < maxMerged+1-int64(p.x.merge); w.last++ {
		w.small = append(w.small, smallRecord{write: w.last + 1})
	}
	session := "session/" + w.session
	for e.keys[session].version < w.last {
		events = append(events, e.put(session, "host 1", p.lease))
	}
	e.commit(events)
	p.x.works[oldID] = 1
}
