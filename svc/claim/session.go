package claim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// session is a lease that this process keeps alive.
type session struct {
	name       string
	lease      clientv3.LeaseID
	validUntil time.Time
	began      int64 // the revision at which its key was put
}

// runSessions runs one session after the other until ctx ends. It returns the lease
// of the last.
func (s *Etcd) runSessions(ctx context.Context) (last clientv3.LeaseID) {
	for {
		ses, err := s.open(ctx)
		if err != nil {
			return last
		}
		last = ses.lease
		s.o.Log.Debug("session opened", "session", ses.name, "lease", leaseName(ses.lease), "ttl", s.o.TTL)
		err = s.runSession(ctx, ses)
		if ctx.Err() != nil {
			return last
		}
		s.suspendSession()
		s.o.Log.Warn("session lost: handlers are cancelled, and a new session claims their ids again", "session", ses.name, "error", err)
		// After the revocation no late copy of a write can take effect, so a view that is read
		// now shows all that the session has written, and all that it ever will have.
		if s.client.Revoke(ctx, ses.lease) != nil || s.reload(ctx, errors.New("the session is over")) != nil {
			return last
		}
	}
}

// open grants a lease and puts the session's key, which gets version 1.
func (s *Etcd) open(ctx context.Context) (*session, error) {
	pause := etcd.NewBackoff()
	for {
		lease, err := s.client.Grant(ctx, s.o.TTL)
		if err != nil {
			return nil, err
		}
		ses := &session{name: randomName(), lease: lease.ID, validUntil: lease.Asked.Add(s.o.TTL)}
		key := s.prefix + "session/" + ses.name
		resp, err := s.client.Txn(ctx, clientv3.Compare(clientv3.Version(key), "=", 0),
			[]clientv3.Op{clientv3.OpPut(key, s.value, clientv3.WithLease(ses.lease))})
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			s.lostLeases.Answered(time.Now())
			if err == nil {
				ses.began = resp.Header.Revision // if an earlier copy of the call put the key, that was before
			}
			return ses, err
		}
		s.lostLeases.Failed(time.Now(), err, "")
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// runSession follows the changes, renews the session and sends its writes until it is over.
func (s *Etcd) runSession(ctx context.Context, ses *session) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s.beginSession(ses.name, ses.began, ses.validUntil, end)
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.follow(ctx) })
	parts.Go(func() error { return s.renew(ctx, ses) })
	parts.Go(func() error { return s.write(ctx, ses) })
	return parts.Wait()
}

// renew keeps the lease alive. It suspends the session when CLAIM_TTL has passed since
// it sent the last renewal that was answered.
func (s *Etcd) renew(ctx context.Context, ses *session) error {
	suspend := func() {
		if s.suspendExpired() {
			s.o.Log.Warn("session suspended: handlers are cancelled", "session", ses.name, "unrenewed", s.o.TTL)
		}
	}
	expires := time.AfterFunc(time.Until(ses.validUntil), suspend)
	defer expires.Stop()
	renewer := s.client.NewRenewer(ses.lease, s.o.TTL/8)
	defer renewer.Close()
	tick := time.NewTicker(s.o.TTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			suspend() // the machine may have slept, and the timer with it
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		sent, err := renewer.Renew(ctx)
		if err != nil {
			return fmt.Errorf("renew its lease: %w", err)
		}
		validUntil := sent.Add(s.o.TTL)
		expires.Reset(time.Until(validUntil))
		if s.renewed(validUntil) {
			s.o.Log.Info("session resumed", "session", ses.name)
		}
		if err := s.checkHistory(ctx); err != nil {
			return err
		}
	}
}

// checkHistory fails if etcd's revision is below one that the view has seen: etcd was restored
// from a backup, and the watch would wait in silence for the revisions that it lost.
func (s *Etcd) checkHistory(ctx context.Context) error {
	seen := s.seen()
	ctx, cancel := context.WithTimeout(ctx, s.o.TTL/8) // the next renewal must not wait for the answer
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix)
	if err == nil && resp.Header.Revision < seen {
		return wentBack(seen, resp.Header.Revision)
	}
	return nil
}

// beginSession starts a new session, whose key was put at that revision with version 1. It
// will claim the ids that deliveries still want, or have finished. end ends its context.
func (c *claimer) beginSession(session string, began int64, validUntil time.Time, end func(error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.suspend(ErrSuspended)
	c.held, c.suspend = context.WithCancelCause(context.Background())
	c.validUntil, c.end = validUntil, end
	c.view.session, c.view.record = session, recordKey{}
	if c.pending != nil {
		c.clearPending()
	}
	c.sent, c.committed, c.window = 1, began, recordWindow{}
	c.checks = nil // their callers have seen the end of Held
	c.reviewAll()
}

// renewed notes that the session was renewed. A suspended session goes on, unless it is over,
// or the answer took so long that the time is over already.
func (c *claimer) renewed(validUntil time.Time) (resumed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil || passed(validUntil) {
		return false
	}
	wasValid := c.valid()
	c.validUntil = validUntil
	if wasValid {
		return false
	}
	if resumed = c.held.Err() != nil; resumed {
		c.held, c.suspend = context.WithCancelCause(context.Background())
	}
	c.reviewAll()
	return resumed
}

// valid reports whether the session may be assumed to live.
func (c *claimer) valid() bool { return c.held.Err() == nil && !passed(c.validUntil) }

// passed reports whether t has passed. While the machine sleeps the monotonic clock stands still, on
// which times are compared, so the wall clock is asked as well.
func passed(t time.Time) bool { return !time.Now().Before(t) || !wallClock().Before(t.Round(0)) }

// wallClock returns the time without a monotonic reading. A test sets it.
var wallClock = func() time.Time { return time.Now().Round(0) }

// suspendSession ends the contexts of all claims, and grants nothing until the next session.
func (c *claimer) suspendSession() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endSession(nil)
}

// endSession is suspendSession for callers that hold the lock. The session's context ends.
func (c *claimer) endSession(cause error) {
	c.suspend(ErrSuspended)
	if c.end != nil {
		c.end(cause)
		c.end = nil
	}
}

// suspendExpired suspends the session unless it was renewed meanwhile. It reports
// whether it did.
func (c *claimer) suspendExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held.Err() != nil || !passed(c.validUntil) {
		return false
	}
	c.suspend(ErrSuspended)
	return true
}

// reviewAll reviews all entries, in the same order each time, unlike the map's.
func (c *claimer) reviewAll() {
	all := make([]*entry, 0, len(c.entries))
	for _, e := range c.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.id, b.id) })
	for _, e := range all {
		c.review(e)
	}
	c.notify()
}
