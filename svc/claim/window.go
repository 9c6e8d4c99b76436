package claim

import (
	"context"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A window takes records for an eighth of DEDUP_WINDOW, but at most maxSpan, and at
	// most an eighth of CACHE_SIZE ids. So an id may be remembered that much longer, and at
	// most that many are forgotten at once.
	windowParts = 8
	maxSpan     = time.Hour
)

// openWindow grants a lease for the records that follow. They live longer by extra.
func (s *Etcd) openWindow(ctx context.Context, extra time.Duration) error {
	if s.o.Window == 0 {
		s.setWindow(recordWindow{Name: forever, Room: 1 << 62})
		return nil
	}
	span := min(s.o.Window/windowParts, maxSpan)
	lease, err := s.client.Grant(ctx, s.o.Window+span+extra)
	if err != nil {
		return err
	}
	s.setWindow(recordWindow{Name: leaseName(lease.ID), Lease: int64(lease.ID), Until: lease.Asked.Add(span), Room: max(1, s.o.MaxIDs/windowParts)})
	return nil
}

// checkFull asks for the end of the oldest window if too many ids are remembered.
func (s *Etcd) checkFull() {
	if s.Remembered() > s.o.MaxIDs {
		select {
		case s.full <- struct{}{}:
		default: // that is under way
		}
	}
}

// endOldestWindow ends the oldest window early, for all processes of the role, when
// more than MaxIDs ids are remembered. The newest window is never ended.
func (s *Etcd) endOldestWindow(ctx context.Context) {
	var last string // the window that was ended last
	var lastAt time.Time
	for {
		select {
		case <-s.full:
		case <-ctx.Done():
			return
		}
		if s.Remembered() <= s.o.MaxIDs { // the view has seen the end of a window meanwhile
			continue
		}
		oldest, next := s.oldestWindows()
		if next.name == "" {
			s.tooMany.Failed(time.Now(), fmt.Errorf("%d ids are remembered", s.Remembered()), "")
			continue
		}
		if oldest.name == last && time.Since(lastAt) < maxLag { // the view has not seen its end yet
			continue
		}
		if s.client.Revoke(ctx, leaseOf(oldest)) != nil {
			return
		}
		last, lastAt = oldest.name, time.Now()
		s.o.Log.Warn("more ids are remembered than CACHE_SIZE: the oldest are forgotten", "forgotten", oldest.ids,
			"memory_reach", s.age(ctx, next), "hint", "raise CACHE_SIZE or lower DEDUP_WINDOW")
	}
}

// oldestWindows returns the two windows that began first; see [doneSet.oldestTwo].
func (s *Etcd) oldestWindows() (oldest, next window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view.done.oldestTwo()
}

// MemoryReach returns how far back the memory of processed ids reaches, to the
// second. It is 0 if that is for ever, or cannot be told now.
func (s *Etcd) MemoryReach(ctx context.Context) time.Duration {
	oldest, _ := s.oldestWindows()
	return s.age(ctx, oldest)
}

// age returns the time since a window began, or 0.
func (s *Etcd) age(ctx context.Context, w window) time.Duration {
	if w.name == "" {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := s.client.Raw.TimeToLive(ctx, leaseOf(w))
	if err != nil || resp.TTL < 0 {
		return 0
	}
	return time.Duration(resp.GrantedTTL-resp.TTL) * time.Second
}

// leaseOf returns the lease of a window, which is its name.
func leaseOf(w window) clientv3.LeaseID {
	lease, _ := strconv.ParseInt(w.name, 16, 64)
	return clientv3.LeaseID(lease)
}
