package rabbit

import (
	"runtime"
	"sync"
	"time"

	"github.com/streadway/amqp"
)

// ackDelay is how long an out-of-order acknowledgement waits to be covered by a
// multiple one. A delivery that takes longer does not hold back those behind it.
const ackDelay = 10 * time.Millisecond

// acker acknowledges the deliveries of one channel. It alone acknowledges there.
type acker struct {
	ack  func(tag uint64, multiple bool) error
	wake chan struct{}
	quit chan struct{}
	done chan struct{}

	mu   sync.Mutex
	tags []uint64 // finished since the last look
}

func newAcker(ch *amqp.Channel) *acker {
	a := &acker{
		ack: ch.Ack, wake: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go a.run()
	return a
}

// finish has a delivery acknowledged soon. It never blocks.
func (a *acker) finish(tag uint64) {
	a.mu.Lock()
	a.tags = append(a.tags, tag)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
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
		case <-a.wake:
		case <-late:
			overdue, late = true, nil
		case <-a.quit:
			overdue, quit = true, true
		}
		runtime.Gosched() // let other deliveries that are about to finish join this frame
		a.mu.Lock()
		order.add(a.tags)
		a.tags = a.tags[:0]
		a.mu.Unlock()

		if tag, ok := order.prefix(); ok {
			a.ack(tag, true) // fails only with the channel, which is noticed elsewhere
		}
		if overdue {
			for _, tag := range order.outOfOrder() {
				a.ack(tag, false)
			}
		} else if len(order.open) > 0 && late == nil {
			late = time.After(ackDelay)
		}
	}
}

// ackOrder finds the acknowledgements that cover the finished deliveries. The
// broker numbers the deliveries of a channel from 1, and closes the channel if
// one is acknowledged twice. One delivery may take as long as millions behind
// it, so what is kept is bounded by the prefetch.
type ackOrder struct {
	first   uint64              // every tag up to this one is finished
	last    uint64              // the latest tag that is finished
	missing map[uint64]struct{} // the tags between them that are not
	open    []uint64            // finished and not acknowledged
}

func (o *ackOrder) add(tags []uint64) {
	if o.missing == nil {
		o.missing = make(map[uint64]struct{})
	}
	for _, tag := range tags {
		for o.last < tag {
			o.last++
			o.missing[o.last] = struct{}{}
		}
		delete(o.missing, tag)
	}
	o.open = append(o.open, tags...)
}

// prefix returns the latest tag that can be acknowledged together with all
// before it, if there is one.
func (o *ackOrder) prefix() (tag uint64, ok bool) {
	for o.first < o.last {
		if _, missing := o.missing[o.first+1]; missing {
			break
		}
		o.first++
	}
	behind := o.open[:0]
	for _, t := range o.open {
		if t <= o.first {
			tag, ok = max(tag, t), true
		} else {
			behind = append(behind, t)
		}
	}
	o.open = behind
	return tag, ok
}

// outOfOrder returns the finished tags behind one that is not.
func (o *ackOrder) outOfOrder() []uint64 {
	tags := o.open
	o.open = nil
	return tags
}
