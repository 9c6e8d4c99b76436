package claim

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// windowParts is into how many windows the memory is divided: an id is remembered
// for up to an eighth longer than DEDUP_WINDOW, and an eighth of CACHE_SIZE is
// forgotten at once when too many ids are remembered.
const (
	windowParts = 8
	maxSlice    = time.Hour
)

// openWindow has ids recorded under a new lease from now on.
func (s *Etcd) openWindow(ctx context.Context) error {
	room := max(1, s.o.MaxIDs/windowParts)
	if s.o.Window == 0 {
		s.setWindow(Window{Name: Forever, Room: 1 << 62})
		return nil
	}
	slice := min(s.o.Window/windowParts, maxSlice)
	until := time.Now().Add(slice)
	lease, err := call(ctx, s.calls, resendAfter, func(ctx context.Context) (clientv3.LeaseID, error) {
		resp, err := s.lease.Grant(ctx, wholeSeconds(s.o.Window+slice))
		if err != nil {
			return 0, err
		}
		return resp.ID, nil
	})
	if err != nil {
		return err
	}
	s.setWindow(Window{Name: leaseName(lease), Lease: int64(lease), Until: until, Room: room})
	return nil
}

// checkFull has the oldest window ended if too many ids are remembered.
func (s *Etcd) checkFull() {
	if s.Remembered() > s.o.MaxIDs {
		select {
		case s.full <- struct{}{}:
		default: // that is under way
		}
	}
}

// endOldWindows ends the oldest window early, for all processes of the role, when
// more than MaxIDs ids are remembered.
func (s *Etcd) endOldWindows(ctx context.Context) {
	var last *window // that was ended, or warned about
	for {
		select {
		case <-s.full:
		case <-ctx.Done():
			return
		}
		oldest, next := s.oldestWindows()
		if oldest == nil || oldest == last {
			continue
		}
		last = oldest
		lease := leaseOf(oldest)
		if lease == clientv3.NoLease {
			s.o.Log.Warn("more ids are remembered than CACHE_SIZE", "ids", s.Remembered(),
				"hint", "raise CACHE_SIZE, or set a DEDUP_WINDOW: with 0 nothing is forgotten")
			continue
		}
		if s.revoke(ctx, lease) != nil {
			return
		}
		s.o.Log.Warn("more ids are remembered than CACHE_SIZE: the oldest are forgotten", "forgotten", oldest.ids,
			"memory_reach", s.age(ctx, next), "hint", "raise CACHE_SIZE or lower DEDUP_WINDOW")
	}
}

// oldestWindows returns the two windows that began first, or nil.
func (s *Etcd) oldestWindows() (oldest, next *window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.done.oldest()
}

// MemoryReach returns how far back the memory of processed ids reaches, to the
// second. It is 0 if that is for ever, or cannot be told now.
func (s *Etcd) MemoryReach(ctx context.Context) time.Duration {
	oldest, _ := s.oldestWindows()
	return s.age(ctx, oldest)
}

// age returns the time since a window began.
func (s *Etcd) age(ctx context.Context, w *window) time.Duration {
	if w == nil || leaseOf(w) == clientv3.NoLease {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.lease.TimeToLive(ctx, leaseOf(w))
	if err != nil || resp.TTL < 0 {
		return 0
	}
	return time.Duration(resp.GrantedTTL-resp.TTL) * time.Second
}

// leaseOf returns the lease of a window; NoLease is that of Forever.
func leaseOf(w *window) clientv3.LeaseID {
	lease, _ := strconv.ParseInt(w.name, 16, 64)
	return clientv3.LeaseID(lease)
}
