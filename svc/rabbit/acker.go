package rabbit

import (
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// ackDelay is how long an out-of-order acknowledgement waits to be covered by a
// multiple one. A delivery that takes longer does not hold back those behind it.
const ackDelay = 10 * time.Millisecond

// acker acknowledges the deliveries of one channel. It alone acknowledges there.
type acker struct {
	ack      func(tag uint64, multiple bool) error
	finished chan uint64
	quit     chan struct{}
	done     chan struct{}
	acked    atomic.Uint64 // this tag and all before it
}

// newAcker returns an acker for a channel on which no more than prefetch
// deliveries are unacknowledged.
func newAcker(ack func(tag uint64, multiple bool) error, prefetch int) *acker {
	a := &acker{
		ack: ack, finished: make(chan uint64, prefetch),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go a.run()
	return a
}

// finish queues the acknowledgement of a delivery. It does not block: there is space
// for all deliveries that are not acknowledged.
func (a *acker) finish(tag uint64) {
	select {
	case a.finished <- tag:
	case <-a.done: // the channel has ended, and the broker redelivers the message
	}
}

// close acknowledges what has been finished so far, and waits for that.
func (a *acker) close() {
	close(a.quit)
	<-a.done
}

func (a *acker) run() {
	defer close(a.done)
	var order ackOrder
	var late <-chan time.Time // nil: nothing is held back
	for quit := false; !quit; {
		overdue := false
		select {
		case tag := <-a.finished:
			order.add(tag)
		case <-late:
			overdue, late = true, nil
		case <-a.quit:
			overdue, quit = true, true
		}
		runtime.Gosched() // let other deliveries that are about to finish join this frame
		for range len(a.finished) {
			order.add(<-a.finished)
		}

		if tag, ok := order.prefix(); ok {
			a.ack(tag, true) // fails only with the channel, which is noticed elsewhere
			a.acked.Store(tag)
		}
		if overdue {
			for _, tag := range order.outOfOrder() {
				a.ack(tag, false)
			}
		} else if len(order.unacked) > 0 && late == nil {
			late = time.After(ackDelay)
		}
	}
}

// ackOrder finds the acknowledgements that cover the finished deliveries. The
// broker numbers the deliveries of a channel from 1, and closes the channel if
// one is acknowledged twice. One delivery may take as long as millions behind
// it, so what is kept is bounded by the prefetch.
type ackOrder struct {
	last    uint64   // the latest tag that is finished
	missing []uint64 // the tags before it that are not, in their order
	unacked []uint64 // finished and not acknowledged
}

func (o *ackOrder) add(tag uint64) {
	for o.last < tag {
		o.last++
		o.missing = append(o.missing, o.last)
	}
	if i, found := slices.BinarySearch(o.missing, tag); found {
		o.missing = slices.Delete(o.missing, i, i+1)
	}
	o.unacked = append(o.unacked, tag)
}

// prefix returns the latest tag that can be acknowledged together with all
// before it, if there is one.
func (o *ackOrder) prefix() (tag uint64, ok bool) {
	o.unacked = slices.DeleteFunc(o.unacked, func(finished uint64) bool {
		if len(o.missing) > 0 && o.missing[0] < finished {
			return false
		}
		tag = max(tag, finished)
		return true
	})
	return tag, tag > 0 // the first tag is 1
}

// outOfOrder returns the finished tags behind one that is not.
func (o *ackOrder) outOfOrder() []uint64 {
	tags := o.unacked
	o.unacked = nil
	return tags
}
