package claim

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// idsPerLease bounds how much etcd deletes in one go when a retention
	// lease expires, and for how long it answers nobody else: measured on two
	// cores, a put that met the end of a lease with 1,000 keys waited for up
	// to 7 ms, 5,000 keys 36 ms, 20,000 keys 120 ms, 100,000 keys 880 ms
	// (0.6 ms otherwise). BenchmarkLeaseExpiry measures it again.
	idsPerLease = 5000
	// longestSlice bounds for how long one retention lease is handed out. At
	// low rates it decides how many leases there are: 144 a day.
	longestSlice = 10 * time.Minute
	// mostEnds is how many leases met in etcd are kept in mind: 5 million ids.
	mostEnds = 1000
)

// retention hands out the leases under which done ids are kept. They are
// shared: a new one for each slice of time or each idsPerLease ids.
type retention struct {
	lease  clientv3.Lease
	window time.Duration // 0: for ever
	away   leaseOutages
	taking chan struct{} // held by the one who takes

	// Guarded by taking.
	id    clientv3.LeaseID // 0: none
	room  int              // ids
	until time.Time

	mu   sync.Mutex
	ends map[clientv3.LeaseID]*leaseEnd
}

// take returns a lease for n more ids that lives for window at least.
func (r *retention) take(life context.Context, n int) (clientv3.LeaseID, error) {
	if r.window == 0 {
		return clientv3.NoLease, nil
	}
	select {
	case r.taking <- struct{}{}:
		defer func() { <-r.taking }()
	case <-life.Done():
		return 0, context.Cause(life)
	}
	if r.id == 0 || r.room < n || !time.Now().Before(r.until) {
		slice := min(r.window/generations, longestSlice)
		until := time.Now().Add(slice)
		id, err := insist(life, r.away, func(ctx context.Context) (clientv3.LeaseID, error) {
			resp, err := r.lease.Grant(ctx, wholeSeconds(r.window+slice))
			if err != nil {
				return 0, err
			}
			return resp.ID, nil
		})
		if err != nil {
			return 0, err
		}
		r.id, r.room, r.until = id, idsPerLease, until
	}
	r.room -= n
	return r.id, nil
}

// gone forgets a lease that etcd does not know any more.
func (r *retention) gone(id clientv3.LeaseID) {
	r.taking <- struct{}{}
	defer func() { <-r.taking }()
	if r.id == id {
		r.id = 0
	}
}

// lifeSince returns how long what was completed after began is remembered at
// least: its answer may have come late.
func (r *retention) lifeSince(began time.Time) time.Duration {
	if r.window == 0 {
		return Forever
	}
	return r.window - time.Since(began)
}

// leaseEnd is when a lease that was met in etcd ends at the earliest.
type leaseEnd struct {
	once sync.Once
	end  time.Time // zero: unknown, or gone already
}

// left returns how long a record under that lease is there at least; 0 if that
// cannot be told. etcd is asked once for a lease.
func (r *retention) left(life context.Context, id clientv3.LeaseID) time.Duration {
	if id == clientv3.NoLease {
		return Forever
	}
	r.mu.Lock()
	e := r.ends[id]
	if e == nil {
		if len(r.ends) >= mostEnds {
			clear(r.ends)
		}
		e = &leaseEnd{}
		r.ends[id] = e
	}
	r.mu.Unlock()
	e.once.Do(func() {
		ctx, cancel := context.WithTimeout(life, callTimeout)
		defer cancel()
		asked := time.Now()
		switch resp, err := r.lease.TimeToLive(ctx, id); {
		case err != nil: // ask again for the next record
			r.mu.Lock()
			delete(r.ends, id)
			r.mu.Unlock()
		case resp.TTL > 0:
			e.end = asked.Add(time.Duration(resp.TTL) * time.Second)
		}
	})
	return time.Until(e.end)
}
