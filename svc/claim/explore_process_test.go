package claim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// simProcess is one process: a real claimer, and the functions that connect it to
// etcd, divided into steps between which other things can happen.
type simProcess struct {
	x       *run
	name    int
	c       *claimer
	view    int64  // the revision of the claimer's state
	lease   int64  // of the session
	over    bool   // Etcd.runSession has returned, and the view has not been read again
	sending *write // that Etcd.commit has not returned from
	call    int    // number of Etcd.send's last call: answers to earlier calls are dropped

	deliveries []*simDelivery
	names      []string // of its sessions
}

// simCopy is a copy of a write on its way to etcd. Copies are carried out at any time
// and in any order, even long after their process has crashed.
type simCopy struct {
	write
	from *simProcess
	c    *claimer // the claimer that sent it; a crash replaces the claimer of from
	call int
	half bool // carried out by half, in a broken variant
}

// current reports whether the process waits for the answer to this copy.
func (w *simCopy) current() bool { return w.c == w.from.c && w.call == w.from.call }

// start simulates NewEtcd, Load and the first part of Run.
func (p *simProcess) start() {
	*p = simProcess{x: p.x, name: p.name, c: newSimClaimer()}
	p.load()
	p.open()
}

// load simulates Etcd.Load.
func (p *simProcess) load() {
	view := newView(p.c.view.session)
	p.x.unreadable(view.Apply(p.x.etcd.snapshot(), func(string, *recordKey) {}))
	p.view = p.x.etcd.revision
	p.c.rebuild(view, p.view, p.c.seen())
}

// watch simulates Etcd.receive with the next n revisions.
func (p *simProcess) watch(n int64) {
	events := slices.Concat(p.x.etcd.log[p.view+1 : p.view+1+n]...)
	p.view += n
	p.x.unreadable(p.c.advance(events, p.view))
}

var farFuture = time.Now().Add(1000 * time.Hour)

// open simulates Etcd.open and the first part of Etcd.runSession.
func (p *simProcess) open() {
	p.lease = p.x.etcd.grant(true)
	p.x.sessions++
	name := fmt.Sprintf("s%d", p.x.sessions)
	p.x.etcd.commit(p.x.etcd.put("session/"+name, fmt.Sprintf(`{"types":["%c"]}`, p.name), p.lease))
	p.over = false
	p.names = append(p.names, name)
	p.c.beginSession(name, p.x.etcd.revision, farFuture, func(error) {
		p.over, p.sending = true, nil
		p.call++
	})
}

// nextSession simulates the end of an iteration of Etcd.runSessions, and the beginning of the
// next.
func (p *simProcess) nextSession() {
	p.x.etcd.end(p.lease)
	p.load()
	p.open()
}

// renew simulates an answer to Etcd.renew while the session is suspended.
func (p *simProcess) renew() {
	if !p.x.etcd.lives(p.lease) {
		p.c.suspendSession()
		return
	}
	p.c.renewed(farFuture)
}

// canWrite reports whether Etcd.write can go on with a next write.
func (p *simProcess) canWrite() bool {
	if p.over || p.sending != nil || p.c.pending != nil {
		return false
	}
	if len(p.c.due)+len(p.c.checks) == 0 { // compose would return nil
		select {
		case <-p.c.wake:
		default:
		}
	}
	return len(p.c.wake) > 0
}

// write simulates one iteration of the loop of Etcd.write, up to the call of Etcd.send.
func (p *simProcess) write() {
	<-p.c.wake
	if p.c.needsWindow() {
		lease := p.x.etcd.grant(false)
		p.c.setWindow(recordWindow{Name: leaseName(clientv3.LeaseID(lease)), Lease: lease, Room: 1 << 40})
	}
	if p.sending = p.c.compose(); p.sending != nil {
		p.x.checkWrite(p, p.sending)
		p.call++
		p.resend()
	}
}

// resend sends another copy for the same call of Etcd.send.
func (p *simProcess) resend() {
	p.x.net = append(p.x.net, &simCopy{write: *p.sending, from: p, c: p.c, call: p.call})
}

// answer simulates the rest of the iteration, with the answer to Etcd.send.
func (p *simProcess) answer(a simAnswer) {
	w := p.sending
	p.sending = nil
	p.call++ // answers to other copies are dropped
	switch {
	case a.leaseGone && len(w.Done) > 0:
		p.c.undo(w)
	case a.leaseGone, a.version != w.N:
		p.c.suspendSession()
	default:
		p.c.committedAt(w, a.revision)
	}
}

// suspended reports whether the session is suspended.
func (p *simProcess) suspended() bool { return p.c.held.Err() != nil }

// steps adds the steps of the process and of its deliveries.
func (p *simProcess) steps(steps []step) []step {
	add := func(can bool, kind string, do func()) {
		if can {
			steps = append(steps, step{p.name, kind, do})
		}
	}
	behind := p.x.etcd.revision - p.view
	add(p.over, "opens the next session", p.nextSession)
	add(p.canWrite(), "writes", p.write)
	add(!p.over && p.suspended(), "is renewed", p.renew)
	add(behind > 0, "watches", func() { p.watch(1) })
	add(behind > 1, "catches up", func() { p.watch(behind) }) // an answer of the watch may have several revisions
	for i, id := range p.x.queue {
		add(len(p.deliveries) < cmp.Or(p.x.held, 2) && (i == 0 || p.x.queue[i-1] != id), "delivers "+id, func() { p.deliver(i) })
	}
	for _, d := range p.deliveries {
		if d.phase == working {
			ended := d.claim.Held.Err() != nil
			add(true, "finishes", func() { p.finish(d) })
			add(ended, "is cancelled", func() { p.cancelled(d) })
			add(!ended && d.gone, "releases", func() { p.release(d) })
		}
	}
	return steps
}

// faults adds the faults of the process and of its deliveries.
func (p *simProcess) faults(faults []step) []step {
	add := func(can bool, kind string, do func()) {
		if can {
			faults = append(faults, step{p.name, kind, do})
		}
	}
	add(!p.x.mild, "CRASHES", func() { p.x.hurt = true; p.crash() })
	add(!p.x.mild && !p.over && !p.suspended(), "IS SUSPENDED", func() { p.x.hurt = true; p.c.suspendSession() })
	add(p.view < p.x.etcd.revision, "WATCH CLOSED", p.load)
	add(p.sending != nil, "SENDS AGAIN", p.resend)
	for _, d := range p.deliveries {
		add(!p.x.mild && !d.gone, "CHANNEL LOST", func() { p.loseChannel(d) })
		add(!d.gone && d.phase == working && d.claim.Held.Err() == nil, "HANDLER FAILS", func() { p.fail(d) })
	}
	return faults
}
