package claim

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// session is a lease that this process keeps alive. The claims under it last
// for as long as it does.
//
// There is one at a time to claim under. A claim whose answer was lost may
// still be committed, at any time later, and nobody would hold it then. So the
// session under which it was asked is retired: new claims go under a new one,
// and when the claims that are held under the old one have ended it is
// revoked, which deletes what was committed late and refuses what comes later.
type session struct {
	lease clientv3.LeaseID
	held  context.Context // ends with ErrSessionLost, or with the work
	lose  context.CancelCauseFunc

	// Guarded by sessions.mu.
	holds   int // claims granted or asked for under it, and not ended
	retired bool
	lost    bool
}

// sessions makes sessions as they are needed.
type sessions struct {
	lease clientv3.Lease
	ttl   time.Duration
	work  context.Context // the parent of every held context
	life  context.Context // ends the calls
	log   *slog.Logger
	away  leaseOutages

	keep     context.Context // under life; while it lasts, leases are kept alive
	stopKeep context.CancelFunc

	making chan struct{} // held by the one who makes a session
	wg     sync.WaitGroup

	mu      sync.Mutex
	current *session // nil: none
}

// acquire returns the session to claim under, with n more holds.
func (s *sessions) acquire(n int) (*session, error) {
	if ses := s.hold(n); ses != nil {
		return ses, nil
	}
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-s.life.Done():
		return nil, context.Cause(s.life)
	}
	if ses := s.hold(n); ses != nil {
		return ses, nil
	}
	ses, err := s.open()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = ses
	ses.holds = n
	return ses, nil
}

func (s *sessions) hold(n int) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.holds += n
	}
	return s.current
}

// open grants a lease and keeps it alive until it is lost or revoked.
func (s *sessions) open() (*session, error) {
	lease, err := insist(s.life, s.away, func(ctx context.Context) (clientv3.LeaseID, error) {
		resp, err := s.lease.Grant(ctx, wholeSeconds(s.ttl))
		if err != nil {
			return 0, err
		}
		return resp.ID, nil
	})
	if err != nil {
		return nil, err
	}
	ses := &session{lease: lease}
	ses.held, ses.lose = context.WithCancelCause(s.work)
	// Not under s.work: a claim is kept alive until it has ended, even when
	// the process is stopping.
	alive, err := s.lease.KeepAlive(s.keep, lease)
	if err != nil { // only if the client is closed
		return nil, err
	}
	s.wg.Go(func() {
		for range alive {
		}
		s.drop(ses)
	})
	s.log.Debug("claim session opened", "lease", leaseName(lease), "ttl", s.ttl)
	return ses, nil
}

// drop takes a session out of use: nothing keeps its claims alive any more.
func (s *sessions) drop(ses *session) {
	s.mu.Lock()
	if s.current == ses {
		s.current = nil
	}
	first, holds := !ses.lost, ses.holds
	ses.lost = true
	s.mu.Unlock()
	if first && s.keep.Err() == nil {
		s.log.Warn("claim session lost: its claims are asked for again", "lease", leaseName(ses.lease), "claims", holds)
	}
	ses.lose(ErrSessionLost)
}

// retire ends claiming under a session: an answer was lost.
func (s *sessions) retire(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses.retired = true
	if s.current == ses {
		s.current = nil
	}
}

// release ends n holds.
func (s *sessions) release(ses *session, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses.holds -= n
	if ses.retired && ses.holds == 0 && !ses.lost {
		ses.lost = true // from here on: revoked
		s.wg.Go(func() { s.revoke(s.life, ses) })
	}
}

// revoke is for a session without holds.
func (s *sessions) revoke(ctx context.Context, ses *session) {
	_, err := insist(ctx, s.away, func(ctx context.Context) (struct{}, error) {
		_, err := s.lease.Revoke(ctx, ses.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = nil
		}
		return struct{}{}, err
	})
	ses.lose(ErrSessionLost)
	s.log.Debug("claim session revoked", "lease", leaseName(ses.lease), "error", err)
}

// close revokes the session if every claim under it has ended. Otherwise
// somebody may still be working under it, or its outcome is unknown: then only
// time may free its claims.
func (s *sessions) close() {
	defer s.wg.Wait()
	defer s.stopKeep()
	s.mu.Lock()
	ses := s.current
	s.current = nil
	revoke := ses != nil && ses.holds == 0
	if revoke {
		ses.lost = true
	}
	s.mu.Unlock()
	switch {
	case revoke:
		s.revoke(s.life, ses)
	case ses != nil:
		s.log.Warn("claims are left to expire", "claims", ses.holds, "within", s.ttl)
	}
}
