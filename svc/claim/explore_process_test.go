package claim

import (
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// simProcess is one process: a real claimer, and the steps of the functions that
// connect it to etcd, each between two points at which something else can happen.
type simProcess struct {
	x       *run
	c       *claimer
	view    int64 // revision of the claimer's state
	lease   int64 // of the session
	over    bool  // Etcd.runSession has returned, before Etcd.endSession
	running bool  // Etcd.write is in its inner loop
	call    int   // Etcd.send's last call: answers to earlier ones are dropped

	deliveries []*simDelivery
}

// simCopy is a write on its way to etcd. Copies are carried out at any time, in
// any order, long after their process has gone.
type simCopy struct {
	sessionWrite
	from *simProcess
	c    *claimer // of the process before a crash
	call int
	half bool // of a broken variant
}

// current reports whether the process waits for the answer to this copy.
func (w *simCopy) current() bool { return w.c == w.from.c && w.call == w.from.call }

// start is NewEtcd, Load and the begin of Run.
func (p *simProcess) start() {
	*p = simProcess{x: p.x, c: newClaimer(p.x.newState())}
	p.load()
	p.open()
}

// load is Etcd.Load.
func (p *simProcess) load() {
	state := p.x.newState()
	p.x.unreadable(state.Apply(p.x.etcd.snapshot(), func(string) {}))
	session, committed := p.c.lastWrite()
	p.c.rebuild(state, session, committed)
	p.view = p.x.etcd.revision
}

// watch is Etcd.applyChanges with the next n revisions.
func (p *simProcess) watch(n int64) {
	events := slices.Concat(p.x.etcd.log[p.view+1 : p.view+1+n]...)
	p.x.unreadable(p.c.state.checkNoGap(events))
	p.x.unreadable(p.c.apply(events))
	p.view += n
}

var farFuture = time.Now().Add(1000 * time.Hour)

// open is Etcd.open and begin in Etcd.runSessions.
func (p *simProcess) open() {
	p.lease = p.x.etcd.grant(true)
	name := p.x.newSession()
	p.x.etcd.commit([]change{p.x.etcd.put("session/"+name, "host 1", p.lease)})
	p.c.begin(name, farFuture)
	p.over = false
}

// end is the return of Etcd.runSession.
func (p *simProcess) end() {
	p.over, p.running = true, false
	p.call++
	p.c.suspendSession()
}

// endSession is Etcd.endSession and the next turn of runSessions. The rebuild
// that is requested in between comes late: so the view sees the old session's end.
func (p *simProcess) endSession() {
	p.x.etcd.end(p.lease)
	if w := p.c.pending(); w != nil && len(w.Done) > 0 {
		if _, exists := p.x.etcd.keys[p.x.etcd.paths.recordPath(w, w.N)]; exists {
			p.c.recordExists()
		}
	}
	p.open()
}

// renew is an answer in Etcd.renew to a session that was suspended.
func (p *simProcess) renew() {
	if !p.x.etcd.lives(p.lease) {
		p.end()
		return
	}
	p.c.renewed(farFuture)
}

// canWrite reports whether Etcd.write goes on with a next write.
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

// write is one turn of the inner loop of Etcd.write.
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

// send is the begin of a call in Etcd.send.
func (p *simProcess) send() {
	p.call++
	p.resend()
}

// resend is another try of the call.
func (p *simProcess) resend() {
	p.x.net = append(p.x.net, &simCopy{sessionWrite: *p.c.pending(), from: p, c: p.c, call: p.call})
}

// openWindow is Etcd.openWindow.
func (p *simProcess) openWindow() {
	lease := p.x.etcd.grant(false)
	p.c.setWindow(recordWindow{Name: leaseName(clientv3.LeaseID(lease)), Lease: lease, Room: 1 << 40})
}

// answer is Etcd.commit with the answer of a call.
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

// nearMerge gives the session as many small records as are merged with the next
// but one.
func (p *simProcess) nearMerge() {
	p.openWindow()
	w, e := &p.c.writer, p.x.etcd
	first := &sessionWrite{Session: w.session, N: 2, Window: w.window}
	events := []change{
		e.put("window/"+w.window.Name, "24h", w.window.Lease),
		e.put(e.paths.recordPath(first, 2), listJSON([]string{oldID}), w.window.Lease),
	}
	w.known, w.small, w.smallIDs = true, []small{{2, []string{oldID}}}, 1
	for w.last = 2; w.last < maxMerged-1; w.last++ {
		w.small = append(w.small, small{write: w.last + 1})
	}
	session := "session/" + w.session
	for e.keys[session].version < w.last {
		events = append(events, e.put(session, "host 1", p.lease))
	}
	e.commit(events)
	p.x.works[oldID] = 1
}
