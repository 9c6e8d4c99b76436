package claim

import (
	"fmt"
	"slices"
)

// kind is the kind of a step.
type kind byte

const (
	deliverStep kind = iota
	endSessionStep
	executeStep
	executeLateStep
	writeStep
	watchStep
	catchUpStep
	finishStep
	cancelledStep
	releaseStep
	renewStep
	expireStep

	// These are faults.
	suspendStep
	crashStep
	resendStep
	answerLostStep
	closedStep
	leaderStep
	windowStep
	forgetStep
	channelStep
	failStep
)

var kinds = [...]string{"deliver", "end session", "execute", "execute, watch, answer", "write", "watch", "catch up", "finish", "cancelled", "release",
	"renew", "expire", "SUSPEND", "CRASH", "RESEND", "ANSWER LOST", "WATCH CLOSED", "LEADER CHANGE", "WINDOW ENDS", "FORGET", "CHANNEL LOST", "FAIL"}

type step struct {
	kind kind
	p, i byte // the process, and the index of a message, delivery, copy or lease
}

func (s step) String() string { return fmt.Sprintf("%c %s %d", 'A'+s.p, kinds[s.kind], s.i) }

// enabled lists the steps that can happen next, and the faults.
func (x *run) enabled(withFaults bool) (steps, faults []step) {
	for i, p := range x.processes {
		from := len(steps)
		add := func(k kind, arg int) { steps = append(steps, step{k, byte(i), byte(arg)}) }
		x.ofEtcd(p, add)
		x.ofDeliveries(p, add)
		before := len(faults)
		if withFaults {
			x.faultsOf(p, func(k kind, arg int) {
				if !x.mild || k != crashStep && k != suspendStep && k != channelStep {
					faults = append(faults, step{k, byte(i), byte(arg)})
				}
			})
		}
		if x.isLocal(p, steps[from:]) {
			return steps[from:], faults[before:]
		}
	}
	for i, w := range x.net {
		steps = append(steps, step{executeStep, 0, byte(i)})
		if w.current() {
			steps = append(steps, step{executeLateStep, 0, byte(i)})
			if withFaults {
				faults = append(faults, step{answerLostStep, 0, byte(i)})
			}
		}
	}
	for i, lease := range x.etcd.leases {
		if lease.living && lease.session && x.canExpire(int64(i+1)) {
			steps = append(steps, step{expireStep, 0, byte(i + 1)})
		} else if lease.living && !lease.session && withFaults {
			faults = append(faults, step{windowStep, 0, byte(i + 1)})
		}
	}
	if withFaults {
		faults = append(faults, step{leaderStep, 0, 0})
		for i, id := range x.etcd.ids {
			if x.etcd.truth[x.etcd.revision][id].done {
				faults = append(faults, step{forgetStep, 0, byte(i)})
			}
		}
	}
	return steps, faults
}

// isLocal reports whether a process can apply the next revision, and every other step
// that it can take commutes with the steps of the others. The others then wait. Steps
// that the checks can see, such as the end of work, are not local.
func (x *run) isLocal(p *simProcess, steps []step) bool {
	return slices.ContainsFunc(steps, func(s step) bool { return s.kind == watchStep }) &&
		!slices.ContainsFunc(steps, func(s step) bool { return s.kind != watchStep && s.kind != catchUpStep && s.kind != writeStep }) &&
		!slices.ContainsFunc(x.net, func(w *simCopy) bool { return w.from == p && w.current() })
}

func (x *run) ofEtcd(p *simProcess, add func(kind, int)) {
	if p.over {
		add(endSessionStep, 0)
	}
	if p.canWrite() {
		add(writeStep, 0)
	}
	if !p.over && p.suspended() {
		add(renewStep, 0)
	}
	if p.view < x.etcd.revision {
		add(watchStep, 0)
	}
	if p.view+1 < x.etcd.revision {
		add(catchUpStep, 0)
	}
}

func (x *run) ofDeliveries(p *simProcess, add func(kind, int)) {
	if len(p.deliveries) < 2 {
		for i, id := range x.queue {
			if i == 0 || x.queue[i-1] != id {
				add(deliverStep, i)
			}
		}
	}
	for i, d := range p.deliveries {
		if d.phase != working {
			continue
		}
		add(finishStep, i)
		if d.claim.Held.Err() != nil {
			add(cancelledStep, i)
		} else if d.gone {
			add(releaseStep, i)
		}
	}
}

func (x *run) faultsOf(p *simProcess, add func(kind, int)) {
	add(crashStep, 0)
	if p.view < x.etcd.revision {
		add(closedStep, 0)
	}
	if !p.over && !p.suspended() {
		add(suspendStep, 0)
	}
	if p.sending != nil {
		add(resendStep, 0)
	}
	for i, d := range p.deliveries {
		if !d.gone {
			add(channelStep, i)
			if d.phase == working && d.claim.Held.Err() == nil {
				add(failStep, i)
			}
		}
	}
}

// canExpire reports whether the lease's process has crashed or has suspended the session.
func (x *run) canExpire(lease int64) bool {
	return !slices.ContainsFunc(x.processes[:], func(p *simProcess) bool {
		return p.lease == lease && !p.over && !p.suspended()
	})
}
