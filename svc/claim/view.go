package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// One rule tells whether the view can be trusted: it shows a write that was answered within
// maxLag of its sending, or answerLag of its answer, whichever is later. The member that serves
// the watch may be cut off or frozen, or its disk may hang. A session with entries writes at
// least every maxLag, so the rule notices a watch that is silent, too.
const (
	maxLag      = 2 * time.Second
	answerLag   = maxLag / 4
	lagInterval = maxLag / 8 // how often the rule is checked
)

// errLags says that the view does not show what it should show.
var errLags = errors.New("the watch does not show what this process wrote")

// follow applies the changes in etcd to the view until ctx ends. A watch that ends or lags is
// followed by another. The view is read anew only if that is compacted, or has lagged without
// showing anything: to read many ids takes long, and nothing is recorded meanwhile.
func (s *Etcd) follow(ctx context.Context) error {
	pause := etcd.NewBackoff()
	for {
		began, from := time.Now(), s.viewedRevision()
		err := s.watch(ctx, from+1)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, errLags) && s.viewedRevision() == from {
			if err := s.reload(ctx, err); err != nil {
				return err
			}
		}
		if time.Since(began) > maxLag {
			pause.Reset()
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// watch applies the changes from a revision on. It returns why it cannot go on.
func (s *Etcd) watch(ctx context.Context, from int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.client.Watch(ctx, s.prefix, from)
	if err != nil {
		return err
	}
	opened := time.Now()
	tick := time.NewTicker(lagInterval)
	defer tick.Stop()
	for {
		select {
		case resp, ok := <-changes:
			if err := resp.Err(); err != nil || !ok {
				return fmt.Errorf("the watch ended: %w", cmp.Or(err, ctx.Err(), errors.New("its channel was closed")))
			}
			s.receive(resp.Events)
		case <-tick.C:
			if s.lags(opened) {
				return errLags
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// receive applies the changes of one answer of the watch, which are of whole revisions. (The revision
// in its header runs ahead while a watch catches up.)
func (s *Etcd) receive(events []*clientv3.Event) {
	if len(events) == 0 {
		return
	}
	changes, windows := make([]change, len(events)), false
	for i, e := range events {
		changes[i] = s.change(e.Kv)
		changes[i].Deleted = e.Type == mvccpb.DELETE
		windows = windows || strings.HasPrefix(changes[i].Key, "window/")
	}
	s.logUnreadable(s.advance(changes, events[len(events)-1].Kv.ModRevision))
	if windows || s.Remembered() > s.o.MaxIDs {
		s.checkWindows()
	}
}

// logUnreadable logs the first of the keys that cannot be read: there may be very many.
func (s *Etcd) logUnreadable(err error) {
	if err != nil {
		s.unreadable.Failed(time.Now(), err, "", "hint", "delete them if they are of an earlier version")
	}
}

func (s *Etcd) change(kv *mvccpb.KeyValue) change {
	return change{Key: strings.TrimPrefix(string(kv.Key), s.prefix), Value: kv.Value, Created: kv.CreateRevision, Version: kv.Version}
}

// reload reads the view anew. Until it is there, ids that are known to be done are skipped, and
// no newly claimed id is granted. It fails only when ctx ends.
func (s *Etcd) reload(ctx context.Context, reason error) error {
	began, before := time.Now(), s.Remembered()
	if err := s.Load(ctx); err != nil {
		return err
	}
	level, hint := slog.LevelInfo, ""
	if s.Remembered() < before {
		level, hint = slog.LevelWarn, "if no window has ended meanwhile, etcd has lost data or was restored: forgotten ids are processed again"
	}
	s.o.Log.Log(ctx, level, "view read again", "reason", reason, "ids", s.Remembered(), "before", before,
		"took", time.Since(began).Round(time.Millisecond), "hint", hint)
	return nil
}

// advance moves the view on to a revision by the changes up to it; see [roleState.Apply]. If changes
// before these were missed, the session is over.
func (c *claimer) advance(changes []change, revision int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var touched []*entry
	err := c.view.Apply(changes, func(id string, record *recordKey) {
		e := c.entries[id]
		switch {
		case e == nil:
			return
		case record == nil:
			e.claims = c.view.Claims(id)
			e.done = e.done && (e.recorded || c.view.Done(id)) // it may be forgotten
		default:
			e.recorded = e.recorded || record.session == c.view.session
			e.done = e.recorded || c.view.Done(id) // its own record answers Complete, even if the id is forgotten at once
		}
		touched = append(touched, e)
	})
	c.viewed = revision
	if errors.Is(err, errMissed) {
		c.endSession(err)
		return nil
	}
	c.checkSession()
	for _, e := range touched {
		c.review(e)
	}
	return err
}

// rebuild replaces the view by one that was read anew. seen is the latest revision that was
// known before that: if the new view is older, etcd was restored from a backup, and the session
// is over.
func (c *claimer) rebuild(view *roleState, revision, seen int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	view.follows = true
	c.view, c.viewed = view, revision
	if revision < seen {
		c.endSession(wentBack(seen, revision))
	}
	for _, e := range c.entries {
		e.claims, e.done, e.recorded = view.Claims(e.id), view.Done(e.id), false
	}
	for _, id := range view.record.ids { // it lists the ids of the pending write, if that was carried out
		if e := c.entries[id]; e != nil {
			carriedOut := e.finished && e.pending && c.pending.Record == view.record.write
			e.recorded = e.done || carriedOut // an id that is not done was forgotten: at once, or before the pending work
			e.done = e.recorded
		}
	}
	c.checkSession()
	c.reviewAll()
}

// checkSession notes what the view shows of the session: the pending write, or its end. From
// that revision on others own its ids.
func (c *claimer) checkSession() {
	version := c.view.Version(c.view.session)
	if w := c.pending; w != nil && version == w.N {
		c.clearPending()
		for _, check := range w.checks {
			close(check)
		}
		c.notify()
	}
	if c.end != nil && isOver(version, c.viewed, c.sent, c.committed) {
		c.endSession(fmt.Errorf("the session's key has version %d after write %d", version, c.sent))
	}
}

// clearPending notes that no write is pending any more. The entries that it named are to be reviewed.
func (c *claimer) clearPending() {
	for _, e := range c.pending.entries {
		e.pending = false
	}
	c.pending = nil
}

// lags reports whether the view breaks the rule. opened is when its watch was opened.
func (c *claimer) lags(opened time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.pending
	if w == nil || w.answered.IsZero() {
		return false
	}
	now := time.Now()
	return now.After(w.sent.Add(maxLag)) && now.After(w.answered.Add(answerLag)) && now.After(opened.Add(maxLag/2))
}

// probe makes a session with entries write, although it has nothing to write.
func (c *claimer) probe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) > 0 && len(c.checks) == 0 {
		c.checks = append(c.checks, make(chan struct{}))
	}
}

// viewedRevision returns the revision of the view.
func (c *claimer) viewedRevision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.viewed
}

// seen returns the latest revision that is known.
func (c *claimer) seen() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.viewed, c.committed)
}

// wentBack says that etcd was restored from a backup.
func wentBack(from, to int64) error {
	return fmt.Errorf("etcd's revision went back from %d to %d: it was restored from a backup", from, to)
}
