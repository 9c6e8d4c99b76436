// Package claimtest holds what tests of claims share: a store in memory and the
// contract that every store keeps.
package claimtest

import (
	"context"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
)

// Records are what etcd would keep, for the stores of several "processes".
type Records struct {
	mu       sync.Mutex
	revision int64
	ids      map[string]record
}

type record struct {
	owner *Memory // nil: done
	token int64
}

// NewRecords returns no records.
func NewRecords() *Records { return &Records{ids: make(map[string]record)} }

// Memory is the store of one process.
type Memory struct {
	records *Records

	mu   sync.Mutex
	held context.Context
	lose context.CancelCauseFunc
}

// Open returns the store of one more process.
func (r *Records) Open() *Memory {
	m := &Memory{records: r}
	m.held, m.lose = context.WithCancelCause(context.Background())
	return m
}

// Claim implements claim.Store.
func (m *Memory) Claim(id string) (claim.Answer, error) {
	m.mu.Lock()
	held := m.held
	m.mu.Unlock()
	r := m.records
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, exists := r.ids[id]
	switch {
	case !exists:
		r.revision++
		rec = record{owner: m, token: r.revision}
		r.ids[id] = rec
	case rec.owner == nil:
		return claim.Answer{State: claim.Done, Life: claim.Forever}, nil
	case rec.owner != m:
		return claim.Answer{State: claim.Busy}, nil
	}
	return claim.Answer{State: claim.Granted, Grant: claim.Grant{ID: id, Token: rec.token, Held: held}}, nil
}

// Complete implements claim.Store.
func (m *Memory) Complete(g claim.Grant) (time.Duration, error) {
	r := m.records
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, exists := r.ids[g.ID]; exists && rec.token != g.Token {
		return 0, claim.ErrLost
	}
	r.ids[g.ID] = record{token: g.Token}
	return claim.Forever, nil
}

// Release implements claim.Store.
func (m *Memory) Release(g claim.Grant) error {
	r := m.records
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, exists := r.ids[g.ID]; exists && rec.token == g.Token {
		delete(r.ids, g.ID)
	}
	return nil
}

// LoseSession ends the session of the process; the next claim makes a new one.
// With expire its claims are gone, too, as after CLAIM_TTL.
func (m *Memory) LoseSession(expire bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lose(claim.ErrSessionLost)
	m.held, m.lose = context.WithCancelCause(context.Background())
	r := m.records
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, rec := range r.ids {
		if expire && rec.owner == m {
			delete(r.ids, id)
		}
	}
}
