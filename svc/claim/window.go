package claim

import (
	"context"
	"fmt"
	"slices"
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

// checkWindows makes followWindows look at the windows.
func (s *Etcd) checkWindows() {
	select {
	case s.windows <- struct{}{}:
	default: // it is about to look
	}
}

// followWindows ends the oldest window early, for all processes of the role, when more than MaxIDs
// ids are remembered. The newest window is never ended. It logs each oldest window that ends early,
// also one that another replica or an operator has ended. (If etcd has lost its data, or was
// restored, other windows go, too: reload logs that.)
func (s *Etcd) followWindows(ctx context.Context) {
	var known []window
	early := make(map[string]time.Time) // by the window's name: until then its end is early; zero: not known
	for {
		select {
		case <-s.windows:
		case <-ctx.Done():
			return
		}
		living := s.livingWindows()
		for _, w := range known {
			if !slices.ContainsFunc(living, func(other window) bool { return other.name == w.name }) {
				if len(living) > 0 && w.created < living[0].created && !passed(early[w.name]) {
					s.o.Log.Warn("the oldest ids are forgotten before DEDUP_WINDOW is over", "forgotten", w.ids, "memory_reach", s.MemoryReach(ctx),
						"hint", "a replica remembered more ids than its CACHE_SIZE: raise CACHE_SIZE of all replicas, or lower DEDUP_WINDOW")
				}
				delete(early, w.name)
			}
		}
		for _, w := range living {
			if _, known := early[w.name]; !known {
				_, left := s.lifetime(ctx, w)
				early[w.name] = time.Now().Add(left - left/windowParts)
			}
		}
		known = living
		switch {
		case s.Remembered() <= s.o.MaxIDs:
		case len(living) < 2:
			s.tooMany.Failed(time.Now(), fmt.Errorf("%d ids are remembered", s.Remembered()), "")
		default: // again, if the view has not seen it yet
			if s.client.Revoke(ctx, leaseOf(living[0])) != nil {
				return
			}
		}
	}
}

// livingWindows returns the windows; see [doneSet.livingWindows].
func (s *Etcd) livingWindows() []window {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view.done.livingWindows()
}

// MemoryReach returns how far back the memory of processed ids reaches, to the
// second. It is 0 if that is for ever, or cannot be told now.
func (s *Etcd) MemoryReach(ctx context.Context) (reach time.Duration) {
	if living := s.livingWindows(); len(living) > 0 {
		reach, _ = s.lifetime(ctx, living[0])
	}
	return reach
}

// lifetime returns the time since a window began, and how long its lease still lives; 0 if that
// cannot be told now.
func (s *Etcd) lifetime(ctx context.Context, w window) (age, left time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := s.client.Raw.TimeToLive(ctx, leaseOf(w))
	if err != nil || resp.TTL < 0 {
		return 0, 0
	}
	return time.Duration(resp.GrantedTTL-resp.TTL) * time.Second, time.Duration(resp.TTL) * time.Second
}

// leaseOf returns the lease of a window, which is its name.
func leaseOf(w window) clientv3.LeaseID {
	lease, _ := strconv.ParseInt(w.name, 16, 64)
	return clientv3.LeaseID(lease)
}
