package rabbit

import (
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
		} else if order.open > 0 && late == nil {
			late = time.After(patience)
		}
	}
}

// ackOrder finds the acknowledgements that cover what has been settled. The
// broker numbers the deliveries of a channel from 1, and closes the channel if
// one is acknowledged twice.
type ackOrder struct {
	first   uint64 // every tag up to this one is acknowledged
	settled map[uint64]ackState
	open    int // settled and not acknowledged
}

type ackState bool // whether it has been acknowledged singly

func (o *ackOrder) add(tags []uint64) {
	if o.settled == nil {
		o.settled = make(map[uint64]ackState)
	}
	for _, tag := range tags {
		o.settled[tag] = false
	}
	o.open += len(tags)
}

// prefix returns the tag up to which everything is settled, if that is not
// acknowledged yet.
func (o *ackOrder) prefix() (tag uint64, ok bool) {
	for {
		acked, settled := o.settled[o.first+1]
		if !settled {
			return tag, ok
		}
		o.first++
		delete(o.settled, o.first)
		if !acked {
			tag, ok = o.first, true
			o.open--
		}
	}
}

// stragglers returns the tags that are settled behind one that is not.
func (o *ackOrder) stragglers() []uint64 {
	if o.open == 0 {
		return nil
	}
	tags := make([]uint64, 0, o.open)
	for tag, acked := range o.settled {
		if !acked {
			o.settled[tag] = true
			tags = append(tags, tag)
		}
	}
	o.open = 0
	return tags
}
