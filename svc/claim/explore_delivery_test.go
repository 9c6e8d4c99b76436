package claim

import "slices"

// simDelivery is one delivery of a message. It uses its claim as Pipeline.process in
// svc/consume does.
type simDelivery struct {
	id    string
	phase phase
	claim *Claim
	last  grant
	check chan struct{} // in the phase checking
	gone  bool          // its channel has closed: the message is delivered again
}

type phase byte

const (
	waiting phase = iota
	working
	checking // the handler has failed: the claim is checked before the dead letter
	finished // the work is done: Complete waits
)

// deliver does the first part of claimer.Claim.
func (p *simProcess) deliver(message int) {
	id := p.x.queue[message]
	p.x.queue = slices.Delete(p.x.queue, message, message+1)
	p.deliveries = append(p.deliveries, &simDelivery{id: id, phase: waiting, claim: p.c.enqueue(id)})
}

// takeAnswers gives the deliveries the answers that have arrived.
func (p *simProcess) takeAnswers() {
	for _, d := range slices.Clone(p.deliveries) {
		switch {
		case d.phase == checking && d.claim.Held.Err() != nil: // see claimer.Check
			p.cancelled(d)
		case d.phase == checking && isClosed(d.check): // as in Pipeline.notDone: without a dead letter, the message would be retried for ever
			p.x.dead++
			p.c.Release(d.claim)
			p.remove(d, true)
		case len(d.claim.answer) == 0:
		case d.phase == finished:
			p.x.checkRecorded(p, d, <-d.claim.answer)
			p.remove(d, true)
		case <-d.claim.answer == nil:
			d.phase = working
			p.x.checkGrant(p, d)
		default: // ErrDone: the delivery is skipped
			p.x.checkSkipped(d)
			p.remove(d, true)
		}
	}
}

// finish ends the work and does the first part of claimer.Complete.
func (p *simProcess) finish(d *simDelivery) {
	p.x.works[d.id]++
	d.phase = finished
	p.c.finish(d.claim)
}

// fail ends the work with a permanent failure and does the first part of claimer.Check.
func (p *simProcess) fail(d *simDelivery) { d.phase, d.check = checking, p.c.requestWrite() }

// cancelled ends the work because the claim is suspended.
func (p *simProcess) cancelled(d *simDelivery) {
	if d.gone {
		p.release(d)
		return
	}
	d.phase = waiting
	p.c.requeue(d.claim)
}

// release ends a delivery whose work is not done.
func (p *simProcess) release(d *simDelivery) {
	p.c.Release(d.claim)
	p.remove(d, false)
}

// loseChannel ends the delivery's context. A running handler continues.
func (p *simProcess) loseChannel(d *simDelivery) {
	p.x.redeliver(d)
	d.gone = true
	if d.phase == waiting {
		p.c.withdraw(d.claim) // no answer can have arrived since takeAnswers
		if d.last.token > 0 {
			p.c.Release(d.claim) // as after an error of Reclaim
		}
		p.remove(d, false)
	}
}

func (p *simProcess) remove(d *simDelivery, ack bool) {
	p.deliveries = slices.DeleteFunc(p.deliveries, func(other *simDelivery) bool { return other == d })
	p.x.over = append(p.x.over, d.claim)
	if ack && !d.gone {
		p.x.acked++
	}
}

// crash restarts the process: all state that is not in etcd is lost. Messages that
// were not acknowledged are delivered again.
func (p *simProcess) crash() {
	for _, d := range p.deliveries {
		if !d.gone {
			p.x.redeliver(d)
		}
	}
	p.start()
}

// redeliver makes the broker deliver a message again, to this process or to the other one.
func (x *run) redeliver(d *simDelivery) {
	x.queue = append(x.queue, d.id)
	slices.Sort(x.queue)
}
