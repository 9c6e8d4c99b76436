package claim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// runSessions runs one session after the other until ctx ends. It returns the lease
// of the last.
func (s *Etcd) runSessions(ctx context.Context) (last clientv3.LeaseID) {
	for ctx.Err() == nil {
		ses, err := s.open(ctx)
		if err != nil {
			return last
		}
		last = ses.lease
		s.beginSession(ses.name, ses.validUntil)
		s.o.Log.Debug("session opened", "session", ses.name, "lease", leaseName(ses.lease), "ttl", s.o.TTL)
		if err = s.runSession(ctx, ses); ctx.Err() != nil {
			return last
		}
		s.o.Log.Warn("session lost: handlers are cancelled, and a new session claims their ids again", "session", ses.name, "error", err)
		s.suspendSession()
		if s.endSession(ctx, ses) != nil {
			return last
		}
		// If etcd was restored from a backup, the view has seen keys that do not exist any
		// more. By now its revisions may be higher than before, so checkHistory alone may
		// miss it.
		s.requestReread(errors.New("the session is over"))
	}
	return last
}

// session is a lease that this process keeps alive.
type session struct {
	name       string
	lease      clientv3.LeaseID
	validUntil time.Time
}

// open grants a lease and puts the session's key, which gets version 1.
func (s *Etcd) open(ctx context.Context) (*session, error) {
	pause := etcd.NewBackoff()
	for warned := false; ; warned = true {
		lease, err := s.client.Grant(ctx, s.o.TTL)
		if err != nil {
			return nil, err
		}
		ses := &session{randomName(), lease.ID, lease.Asked.Add(s.o.TTL)}
		key := s.prefix + "session/" + ses.name
		_, err = s.client.Txn(ctx, clientv3.Compare(clientv3.Version(key), "=", 0),
			[]clientv3.Op{clientv3.OpPut(key, s.value, clientv3.WithLease(ses.lease))})
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return ses, err
		}
		if !warned {
			s.o.Log.Warn("the lease of a new session was lost before its key was written: events wait unacknowledged",
				"hint", "check that ETCD_ENDPOINTS names members of one cluster, and that etcd answers within CLAIM_TTL")
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// runSession renews the session and sends its writes until it is over.
func (s *Etcd) runSession(ctx context.Context, ses *session) error {
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.renew(ctx, ses) })
	parts.Go(func() error { return s.write(ctx, ses) })
	return parts.Wait()
}

// renew keeps the lease alive. It suspends the session when CLAIM_TTL has passed since
// it sent the last renewal that was answered.
func (s *Etcd) renew(ctx context.Context, ses *session) error {
	suspend := time.AfterFunc(time.Until(ses.validUntil), func() {
		if s.suspendExpired() {
			s.o.Log.Warn("session suspended: handlers are cancelled", "session", ses.name, "unrenewed", s.o.TTL)
		}
	})
	defer suspend.Stop()
	tick := time.NewTicker(s.o.TTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		sent, err := s.client.Renew(ctx, ses.lease, s.o.TTL/8)
		if err != nil {
			return fmt.Errorf("renew its lease: %w", err)
		}
		validUntil := sent.Add(s.o.TTL)
		suspend.Reset(time.Until(validUntil))
		if s.renewed(validUntil) {
			s.o.Log.Info("session resumed", "session", ses.name)
		}
	}
}

// endSession revokes the lease of a session that is over. After that no late copy
// of the pending write can take effect, so the record of that write exists now or
// never will.
func (s *Etcd) endSession(ctx context.Context, ses *session) error {
	if err := s.client.Revoke(ctx, ses.lease); err != nil {
		return err
	}
	pending := s.pending()
	if pending == nil || len(pending.Done) == 0 {
		return nil
	}
	resp, err := s.client.Get(ctx, s.recordPath(pending, pending.N), clientv3.WithCountOnly())
	if err == nil && resp.Count > 0 {
		s.recordExists()
	}
	return err
}
