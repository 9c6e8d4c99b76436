package consume

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/event"
)

const (
	movePause   = 20 * time.Millisecond // between two events that are requeued
	slowPause   = time.Second           // the same, while nothing passes, or the broker refuses copies
	longSilence = time.Minute           // without a pass, before slowPause
	silence     = 3 * time.Second       // without a pass, before nothing is said to pass
)

// refusals are the events whose work is Unavailable: nothing tells whether all work is, or that
// of one tenant among many. While they are half of what the consumer may hold, the first of
// them is requeued, so that the others get through. The log and Refused speak of them.
type refusals struct {
	mu      sync.Mutex
	waiting []*refusal    // those refused first come first; without those that are being requeued
	err     error         // the last one
	passed  time.Time     // when work last passed, or the first of waiting was refused
	stuck   time.Time     // when the broker last refused a copy
	again   chan struct{} // closed when all are to be tried again
	moving  bool          // the next is scheduled to be requeued
}

// refusal is one event from its first refusal until it passes or is given up.
type refusal struct {
	ctx      context.Context // ends with the delivery
	delivery Delivery
	event    event.Event

	move chan struct{} // receives when the event is to be requeued; capacity 1
}

// refuse notes that the work of an event is refused, for the first time or again.
func (p *Pipeline) refuse(r *refusal, err error) {
	s := &p.refusals
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Outage.Failed(time.Now(), err, "", "id", r.event.ID)
	s.err = err
	if r.move == nil {
		if len(s.waiting) == 0 {
			s.passed, s.again = time.Now(), make(chan struct{})
		}
		r.move = make(chan struct{}, 1)
		s.waiting = append(s.waiting, r)
	}
	s.schedule()
}

// full reports whether events are to be requeued.
func (s *refusals) full() bool {
	n := len(s.waiting)
	return n > 0 && n >= s.waiting[n-1].delivery.Held()/2
}

// moves reports whether events are being requeued: then each is tried once a delivery.
func (s *refusals) moves() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full() && time.Since(s.stuck) > requeueTimeout
}

// schedule has the first event that waits requeued after a pause, if events are to be requeued.
func (s *refusals) schedule() {
	if s.moving || !s.full() {
		return
	}
	s.moving = true
	pause := movePause
	if time.Since(s.passed) > longSilence || time.Since(s.stuck) < requeueTimeout {
		pause = slowPause
	}
	time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.moving = false
		if s.full() {
			s.waiting[0].move <- struct{}{}
			s.waiting = s.waiting[1:]
		}
		s.schedule()
	})
}

// stay notes that an event could not be requeued. Its next turn comes after all others.
func (s *refusals) stay(r *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = time.Now()
	s.waiting = append(s.waiting, r)
	s.schedule()
}

// leave notes that an event does not wait any more. r is nil if it was never refused.
func (s *refusals) leave(r *refusal) {
	if r == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(other *refusal) bool { return other == r })
}

// pass notes that the work of an event was done or failed for good. r is nil if it was never
// refused. If nothing has passed for a while before that, all that wait are tried again.
func (p *Pipeline) pass(r *refusal) {
	s := &p.refusals
	if s.leave(r); p.Outage.Err() == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		p.Outage.Answered(time.Now())
		return
	}
	if time.Since(s.passed) > silence {
		close(s.again)
		s.again = make(chan struct{})
	}
	s.passed = time.Now()
}

// Refused returns an error while the work of all events is Unavailable.
func (p *Pipeline) Refused(context.Context) error {
	s := &p.refusals
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 || time.Since(s.passed) <= silence {
		return nil
	}
	return fmt.Errorf("no event has passed for %v, and %d wait: %w", time.Since(s.passed).Round(time.Second), len(s.waiting), s.err)
}

// waitRefused waits until a refused event is to be tried again, or until ctx or held ends. It
// reports whether the event was requeued instead.
func (p *Pipeline) waitRefused(ctx, held context.Context, r *refusal, pause time.Duration) (requeued bool) {
	s := &p.refusals
	s.mu.Lock()
	again := s.again
	s.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if s.moves() {
				timer.Reset(pause)
				continue
			}
		case <-again:
		case <-ctx.Done():
		case <-held.Done():
		case <-r.move:
			if p.requeue(r.ctx, r.delivery, r.event) == nil {
				return true
			}
			s.stay(r)
			continue
		}
		return false
	}
}
