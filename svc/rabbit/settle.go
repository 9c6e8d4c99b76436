package rabbit

import (
	"runtime"
	"sync"
	"time"

	"github.com/streadway/amqp"
)

// patience is how long an acknowledgement waits for those of the deliveries
// before it, to go with them in one frame. A delivery that waits or works
// longer does not hold back those behind it.
const patience = 10 * time.Millisecond

// settler acknowledges the deliveries of one channel. It alone writes to the
// channel while it runs.
type settler struct {
	ack  func(tag uint64, multiple bool) error
	wake chan struct{}
	quit chan struct{}
	done chan struct{}

	mu   sync.Mutex
	tags []uint64 // settled since the last look
}

func newSettler(ch *amqp.Channel) *settler {
	s := &settler{
		ack: ch.Ack, wake: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go s.run()
	return s
}

// settle has a delivery acknowledged soon. It never blocks.
func (s *settler) settle(tag uint64) {
	s.mu.Lock()
	s.tags = append(s.tags, tag)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close acknowledges what has been settled so far, and waits for that.
func (s *settler) close() {
	close(s.quit)
	<-s.done
}

func (s *settler) run() {
	defer close(s.done)
	var order ackOrder
	var late <-chan time.Time // nil: nothing is held back
	for quit := false; !quit; {
		overdue := false
		select {
		case <-s.wake:
		case <-late:
			overdue, late = true, nil
		case <-s.quit:
			overdue, quit = true, true
		}
		runtime.Gosched() // whoever else is about to settle goes first, and into the same frame
		s.mu.Lock()
		order.add(s.tags)
		s.tags = s.tags[:0]
		s.mu.Unlock()

		if tag, ok := order.prefix(); ok {
			s.ack(tag, true) // fails only with the channel, which is noticed elsewhere
		}
		if overdue {
			for _, tag := range order.stragglers() {
				s.ack(tag, false)
			}
		} else if len(order.open) > 0 && late == nil {
			late = time.After(patience)
		}
	}
}

// ackOrder finds the acknowledgements that cover what has been settled. The
// broker numbers the deliveries of a channel from 1, and closes the channel if
// one is acknowledged twice. One delivery may be away for as long as millions
// behind it come and go, so what is kept is bounded by the prefetch.
type ackOrder struct {
	first   uint64              // every tag up to this one is settled
	last    uint64              // the latest tag that is settled
	missing map[uint64]struct{} // the tags between them that are not
	open    []uint64            // settled and not acknowledged
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

// stragglers returns the tags that are settled behind one that is not.
func (o *ackOrder) stragglers() []uint64 {
	tags := o.open
	o.open = nil
	return tags
}
