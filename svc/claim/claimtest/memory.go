// Package claimtest holds what tests of claims share: claims in memory, and the
// contract that all claims keep.
package claimtest

import (
	"context"
	"slices"
	"sync"

	"github.com/streamdal/gophercon2021/svc/claim"
)

// Records is what the processes of a role share, as etcd keeps it: the ids that
// are done, and the claims that list the others.
type Records struct {
	mu       sync.Mutex
	revision int64
	done     map[string]bool
	claims   map[string][]*listing // by id, the oldest first
}

// NewRecords returns no records.
func NewRecords() *Records {
	return &Records{done: make(map[string]bool), claims: make(map[string][]*listing)}
}

// Memory is the claims of one process. It follows the rule of [claim.Etcd] and can
// be told what happens to its session.
type Memory struct {
	records *Records
	closed  chan struct{}

	// Guarded by records.mu.
	listings map[string]*listing // by id: what deliveries of this process want or have
	held     context.Context     // of the claims that are granted now
	suspend  context.CancelCauseFunc
}

// listing is an id on a claim of a process.
type listing struct {
	process  *Memory
	id       string
	token    int64 // 0: not listed, because the session has ended
	waiting  []*waiter
	holder   *claim.Claim // nil: none
	finished chan error   // not nil: the holder's work is done, and it waits for the record
}

// waiter is a delivery that waits for an id.
type waiter struct {
	claim *claim.Claim
	ready chan error // receives the answer
}

// Open returns the claims of one more process.
func (r *Records) Open() *Memory {
	m := &Memory{records: r, closed: make(chan struct{}), listings: make(map[string]*listing)}
	m.held, m.suspend = context.WithCancelCause(context.Background())
	return m
}

// Claim waits until id is the caller's; see consume.Claimer.
func (m *Memory) Claim(ctx context.Context, id string) (*claim.Claim, error) {
	l, w, done := m.ask(id)
	if done {
		return nil, claim.ErrDone
	}
	if err := m.wait(ctx, l, w); err != nil {
		return nil, err
	}
	return w.claim, nil
}

func (m *Memory) ask(id string) (l *listing, w *waiter, done bool) {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	if m.records.done[id] {
		return nil, nil, true
	}
	if l = m.listings[id]; l == nil {
		l = &listing{process: m, id: id}
		m.listings[id] = l
		if !m.suspended() {
			m.records.list(l)
		}
	}
	w = &waiter{claim: &claim.Claim{ID: id}, ready: make(chan error, 1)}
	l.waiting = append(l.waiting, w)
	m.records.evaluate(id)
	return l, w, false
}

// Reclaim waits until the id of a suspended claim is the caller's again.
func (m *Memory) Reclaim(ctx context.Context, c *claim.Claim) error {
	l, w := m.askAgain(c)
	return m.wait(ctx, l, w)
}

func (m *Memory) askAgain(c *claim.Claim) (*listing, *waiter) {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	l := m.listings[c.ID]
	w := &waiter{claim: c, ready: make(chan error, 1)}
	l.holder = nil
	l.waiting = slices.Insert(l.waiting, 0, w)
	m.records.evaluate(c.ID)
	return l, w
}

// wait waits for the answer to w. Without one, w is withdrawn.
func (m *Memory) wait(ctx context.Context, l *listing, w *waiter) error {
	ended := claim.ErrClosed
	select {
	case err := <-w.ready:
		return err
	case <-ctx.Done():
		ended = context.Cause(ctx)
	case <-m.closed:
	}
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	select {
	case err := <-w.ready: // it came meanwhile
		return err
	default:
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(other *waiter) bool { return other == w })
	m.records.evaluate(l.id)
	return ended
}

// Check makes sure that the claim is still the caller's.
func (m *Memory) Check(ctx context.Context, c *claim.Claim) error {
	switch {
	case c.Held.Err() != nil:
		return claim.ErrSuspended
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return nil
}

// Complete records that the work is done.
func (m *Memory) Complete(c *claim.Claim) error {
	select {
	case err := <-m.finish(c):
		return err
	case <-m.closed:
		return claim.ErrClosed
	}
}

func (m *Memory) finish(c *claim.Claim) <-chan error {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	finished := make(chan error, 1)
	m.listings[c.ID].finished = finished
	m.records.evaluate(c.ID)
	return finished
}

// Release ends the claim, undone.
func (m *Memory) Release(c *claim.Claim) {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	if l := m.listings[c.ID]; l != nil && l.holder == c {
		l.holder = nil
		m.records.evaluate(c.ID)
	}
}

// Suspend has the process lose touch with the records until Resume.
func (m *Memory) Suspend() {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	m.suspend(claim.ErrSuspended)
}

// Expire does the same, and ends the session: its claims are lost to others. The
// session that Resume begins claims again the ids that are still wanted.
func (m *Memory) Expire() {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	m.suspend(claim.ErrSuspended)
	for id, l := range m.listings {
		m.records.unlist(l)
		m.records.evaluate(id)
	}
}

// Resume has the process reach the records again.
func (m *Memory) Resume() {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	m.held, m.suspend = context.WithCancelCause(context.Background())
	for id, l := range m.listings {
		if l.token == 0 {
			m.records.list(l)
		}
		m.records.evaluate(id)
	}
}

// Close has all calls that wait return claim.ErrClosed.
func (m *Memory) Close() { close(m.closed) }

func (m *Memory) suspended() bool { return m.held.Err() != nil }

// list puts an id on a new claim of its process.
func (r *Records) list(l *listing) {
	r.revision++
	l.token = r.revision
	r.claims[l.id] = append(r.claims[l.id], l)
}

// unlist takes an id off the claim of its process.
func (r *Records) unlist(l *listing) {
	l.token = 0
	r.claims[l.id] = slices.DeleteFunc(r.claims[l.id], func(other *listing) bool { return other == l })
	if len(r.claims[l.id]) == 0 {
		delete(r.claims, l.id)
	}
}

// evaluate answers what the rule says to the deliveries that wait for id. A process
// that is suspended learns it when it resumes.
func (r *Records) evaluate(id string) {
	for _, l := range slices.Clone(r.claims[id]) {
		if l.process.suspended() {
			continue
		}
		if l == r.claims[id][0] && !r.done[id] {
			r.serve(l)
		}
		if r.done[id] {
			l.skip()
		}
		if l.holder == nil && len(l.waiting) == 0 {
			r.unlist(l)
			delete(l.process.listings, id)
		}
	}
}

// serve records the finished work of the owner of an id, or grants the id to the
// first delivery that waits.
func (r *Records) serve(l *listing) {
	switch {
	case l.finished != nil:
		r.done[l.id] = true
		l.finished <- nil
		l.finished, l.holder = nil, nil
	case l.holder == nil && len(l.waiting) > 0:
		w := l.waiting[0]
		l.waiting = l.waiting[1:]
		l.holder = w.claim
		w.claim.Token, w.claim.Held = l.token, l.process.held
		w.ready <- nil
	}
}

// skip tells the deliveries of an id that it is done.
func (l *listing) skip() {
	for _, w := range l.waiting {
		w.ready <- claim.ErrDone
	}
	l.waiting = nil
	if l.finished != nil {
		l.finished <- claim.ErrDone
		l.finished, l.holder = nil, nil
	}
}
