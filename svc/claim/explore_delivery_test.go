package claim

import "slices"

// simDelivery is one delivery of a message, as Pipeline.process in svc/consume
// takes it through its claim.
type simDelivery struct {
	id      string
	phase   phase
	claim   *Claim
	granted bool
	check   chan struct{} // in the phase checking
	gone    bool          // its channel is gone: the message is delivered again
}

type phase byte

const (
	waiting  phase = 'w'
	working  phase = 'k'
	checking phase = 'c' // the handler has failed: the claim is checked before the dead letter
	finished phase = 'f' // the work is done: Complete waits
)

// deliver is the begin of claimer.Claim.
func (p *simProcess) deliver(message int) {
	id := p.x.queue[message]
	p.x.queue = slices.Delete(slices.Clone(p.x.queue), message, message+1)
	p.deliveries = append(p.deliveries, &simDelivery{id: id, phase: waiting, claim: p.c.ask(id)})
}

// takeAnswers gives the deliveries the answers that are there.
func (p *simProcess) takeAnswers() {
	for _, d := range slices.Clone(p.deliveries) {
		switch d.phase {
		case waiting:
			select {
			case err := <-d.claim.answer:
				p.answered(d, err)
			default:
			}
		case checking: // claimer.Check
			if d.claim.Held.Err() != nil {
				p.cancelled(d)
				continue
			}
			select {
			case <-d.check: // Pipeline.notDone, without which a copy would be tried for ever
				p.x.dead++
				p.c.Release(d.claim)
				p.remove(d, true)
			default:
			}
		case finished:
			select {
			case err := <-d.claim.answer:
				p.x.checkRecorded(p, d, err)
				p.remove(d, true)
			default:
			}
		}
	}
}

func (p *simProcess) answered(d *simDelivery, err error) {
	if err != nil { // ErrDone: skipped
		p.x.checkSkipped(p, d)
		p.remove(d, true)
		return
	}
	d.phase, d.granted = working, true
	p.x.checkGrant(p, d)
}

// finish is the end of the work, and the begin of claimer.Complete.
func (p *simProcess) finish(d *simDelivery) {
	p.x.works[d.id]++
	d.phase = finished
	p.c.finish(d.claim)
}

// fail is a handler that has failed for good: the begin of claimer.Check.
func (p *simProcess) fail(d *simDelivery) { d.phase, d.check = checking, p.c.askCheck() }

// cancelled is a handler that has returned because its claim is suspended.
func (p *simProcess) cancelled(d *simDelivery) {
	if d.gone {
		p.release(d)
		return
	}
	d.phase = waiting
	p.c.askAgain(d.claim)
}

// release is a delivery that ends with its work undone.
func (p *simProcess) release(d *simDelivery) {
	p.c.Release(d.claim)
	p.remove(d, false)
}

// loseChannel is the end of the delivery's context. A handler that runs goes on.
func (p *simProcess) loseChannel(d *simDelivery) {
	p.x.queue = append(slices.Clone(p.x.queue), d.id)
	slices.Sort(p.x.queue)
	d.gone = true
	if d.phase == waiting {
		p.c.withdraw(d.claim) // nothing answers between takeAnswers and this
		if d.granted {
			p.c.Release(d.claim) // after an error of Reclaim
		}
		p.remove(d, false)
	}
}

func (p *simProcess) remove(d *simDelivery, ack bool) {
	p.deliveries = slices.DeleteFunc(p.deliveries, func(other *simDelivery) bool { return other == d })
	if ack && !d.gone {
		p.x.acked++
	}
}

// crash loses what is not in etcd. Messages that are not acknowledged are
// delivered again, to the restarted process or to the other one.
func (p *simProcess) crash() {
	for _, d := range p.deliveries {
		if !d.gone {
			p.x.queue = append(slices.Clone(p.x.queue), d.id)
		}
	}
	slices.Sort(p.x.queue)
	p.start()
}
