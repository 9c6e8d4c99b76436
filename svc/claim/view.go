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
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// maxLag bounds how long the view may lag behind a write that is known to be
	// committed: the member that serves the watch may be cut off or frozen, or etcd
	// was restored from a backup.
	maxLag          = 2 * time.Second
	lagInterval     = maxLag / 4      // how often the watch looks at its lag
	historyInterval = 2 * time.Second // how often checkHistory asks for etcd's revision
)

// follow applies the changes in etcd to the state until ctx ends.
func (s *Etcd) follow(ctx context.Context) {
	pause := etcd.NewBackoff()
	for {
		began := time.Now()
		err := s.watch(ctx, s.viewed.Load()+1)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxLag {
			pause.Reset()
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return
		}
		// Until the new state is there, ids that are known to be done are skipped,
		// and no newly claimed id is granted.
		reading, before := time.Now(), s.Remembered()
		if s.Load(ctx) != nil {
			return
		}
		level := slog.LevelInfo
		if s.Remembered() < before {
			level = slog.LevelWarn
		}
		s.o.Log.Log(ctx, level, "view read again", "reason", err, "ids", s.Remembered(), "before", before, "took", time.Since(reading).Round(time.Millisecond))
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
	last, caughtUp := int64(0), time.Now() // the last own write that was shown, and when the view last made progress
	tick := time.NewTicker(lagInterval)
	defer tick.Stop()
	for {
		select {
		case resp, ok := <-changes:
			if err := resp.Err(); err != nil || !ok {
				return fmt.Errorf("the watch ended: %w", cmp.Or(err, ctx.Err(), errors.New("its channel was closed")))
			}
			if err := s.applyChanges(resp); err != nil {
				return err
			}
		case <-tick.C:
			if write, lags := s.shown(); !lags || write != last {
				last, caughtUp = write, time.Now()
			} else if time.Since(caughtUp) >= maxLag-lagInterval { // the next tick would be too late
				return errors.New("the watch does not show what this process wrote")
			}
		case err := <-s.reread:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// applyChanges applies the changes of one answer, which are of whole revisions.
// It fails if changes before them were missed.
func (s *Etcd) applyChanges(resp clientv3.WatchResponse) error {
	changes := make([]change, len(resp.Events))
	for i, e := range resp.Events {
		changes[i] = s.change(e.Kv)
		changes[i].Deleted = e.Type == mvccpb.DELETE
	}
	// Without the lock: only this goroutine changes the state.
	if err := s.state.checkNoGap(changes); err != nil {
		return err
	}
	s.logUnreadable(s.apply(changes))
	s.viewed.Store(resp.Header.Revision)
	s.checkFull()
	return nil
}

// logUnreadable logs the first of the keys that cannot be read, not again each time that it
// changes.
func (s *Etcd) logUnreadable(err error) {
	if err == nil || err.Error() == s.unreadable {
		return
	}
	s.unreadable = err.Error()
	s.o.Log.Warn("keys in etcd are ignored: they cannot be read", "error", err, "hint", "delete them if they are of an earlier version")
}

func (s *Etcd) change(kv *mvccpb.KeyValue) change {
	return change{Key: strings.TrimPrefix(string(kv.Key), s.prefix), Value: kv.Value, Created: kv.CreateRevision, Version: kv.Version}
}

// checkHistory makes follow read the view again if etcd's revision is below one that
// the view has seen: etcd was restored from a backup, and the watch would wait in
// silence for the revisions that it lost. It also tests a watch that shows nothing while
// deliveries wait for other processes: a member whose disk hangs keeps its watches open.
func (s *Etcd) checkHistory(ctx context.Context) {
	tick := time.NewTicker(historyInterval)
	defer tick.Stop()
	for before := int64(0); ; {
		seen := s.viewed.Load()
		resp, err := s.client.Get(ctx, s.prefix)
		if err != nil {
			return
		}
		if resp.Header.Revision < seen {
			s.requestReread(fmt.Errorf("etcd's revision went back from %d to %d: it was restored from a backup", seen, resp.Header.Revision))
		}
		if seen == before {
			s.writeIfWaiting() // all processes see it, so they do not all write
		}
		before = seen
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// requestReread makes follow read the view again.
func (s *Etcd) requestReread(reason error) {
	select {
	case s.reread <- reason:
	default: // it is requested already
	}
}
