package claim_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A call that etcd keeps refusing is logged with a hint, and the process is not ready.
func TestTooFewOperations(t *testing.T) {
	p := start(t, startEtcd(t, 1, stack.EtcdOptions{Config: map[string]any{"max-txn-ops": 2}})[0], claim.Options{Window: time.Hour})
	c := p.mustClaim("1")
	go p.Complete(c) // until the test ends
	p.log.await("level=ERROR", "etcd refuses a call", "--max-txn-ops to 48")
	if p.Ping(t.Context()) == nil {
		t.Error("the process is ready while its write is refused")
	}
}

// While etcd is full the work waits, which is logged once, with a hint, and is recorded once there is space
// again. While a new session in place of a lost one is refused, the view is not read again and again.
func TestFull(t *testing.T) {
	lease := &grants{}
	// The session must not be lost before it is revoked, on a slow machine.
	p := start(t, startEtcd(t, 1, stack.EtcdOptions{QuotaBytes: 4 << 20})[0], claim.Options{TTL: time.Hour, Window: time.Hour}, lease.wrap)
	p.mustComplete("0") // opens the window
	c := p.mustClaim("1")
	for err := error(nil); err == nil; {
		_, err = p.client.Put(t.Context(), "fill", string(make([]byte, 1<<20)))
	}
	completed := make(chan error, 1)
	go func() { completed <- p.Complete(c) }()
	p.log.await("level=ERROR", "etcd refuses a call", "etcdctl alarm disarm")
	if p.Ping(t.Context()) == nil {
		t.Error("the process is ready while its write is refused")
	}
	if _, err := p.client.Revoke(t.Context(), p.lease); err != nil {
		t.Fatal(err)
	}
	before := lease.n.Load()
	eventually(t, func() error {
		if n := lease.n.Load() - before; n < 8 { // some five seconds
			return fmt.Errorf("a lease was asked for %d times", n)
		}
		return nil
	})
	if again := p.log.find("view read again"); len(again) > 1 {
		t.Errorf("the view was read %d times: %v", len(again), again)
	}
	if errors := p.log.find("level=ERROR"); len(errors) != 1 {
		t.Errorf("%d errors are logged: %v", len(errors), errors)
	}
	must := func(_ any, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	resp, err := p.client.Get(t.Context(), "fill")
	must(resp, err)
	must(p.client.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()))
	must(p.client.Defragment(t.Context(), p.client.Endpoints()[0]))
	must(p.client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}))
	must(nil, <-completed)
	p.log.await("etcd accepts calls again")
	must(nil, p.Ping(t.Context()))
}

// grants counts the leases that a client grants. Those that are lost end at once.
type grants struct {
	clientv3.Lease
	n    atomic.Int64
	lost func(n, ttl int64) bool // nil: none
}

func (g *grants) wrap(c *clientv3.Client) { g.Lease, c.Lease = c.Lease, g }

func (g *grants) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	n := g.n.Add(1)
	resp, err := g.Lease.Grant(ctx, ttl)
	if err == nil && g.lost != nil && g.lost(n, ttl) {
		_, err = g.Revoke(ctx, resp.ID)
	}
	return resp, err
}

// While the leases of new sessions are lost at once, as when ETCD_ENDPOINTS names members of
// different clusters, etcd is not asked for them without a pause, and the log says so once.
func TestLeasesOfNewSessionsAreLost(t *testing.T) {
	lease := &grants{lost: func(n, _ int64) bool { return n <= 6 }}
	began := time.Now()
	p := start(t, sharedEtcd(t), claim.Options{Window: time.Hour}, lease.wrap)
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("%d leases were granted within %v", lease.n.Load(), took)
	}
	if n := len(p.log.find("level=WARN", "ETCD_ENDPOINTS")); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
}

// With a DEDUP_WINDOW that is shorter than etcd's answers take, ids are recorded all the
// same. The leases of less than four seconds stand for answers that take that long.
func TestWindowShorterThanAnAnswer(t *testing.T) {
	lease := &grants{lost: func(_, ttl int64) bool { return ttl < 4 }}
	p := start(t, sharedEtcd(t), claim.Options{TTL: time.Hour, Window: time.Second}, lease.wrap)
	recorded := make(chan error, 1)
	go func(c *claim.Claim) { recorded <- p.Complete(c) }(p.mustClaim("1"))
	select {
	case err := <-recorded:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the id is not recorded")
	}
}

// A delivery that waits for another process is granted its id although the watch shows no
// changes any more, without an error, and this process has nothing to write.
func TestWaitingBehindASilentWatch(t *testing.T) {
	watcher := &silentWatcher{}
	owner := start(t, sharedEtcd(t), claim.Options{Window: time.Hour})
	waiting := start(t, sharedEtcd(t), claim.Options{Window: time.Hour}, func(c *clientv3.Client) { watcher.Watcher, c.Watcher = c.Watcher, watcher })
	c, granted := owner.mustClaim("1"), make(chan error)
	go func() {
		_, err := waiting.claim("1")
		granted <- err
	}()
	owner.awaitClaims(2)
	watcher.silent.Store(true)
	owner.Release(c)
	if err := <-granted; err != nil {
		t.Error(err)
	}
}

// silentWatcher stands for a watch on a member whose disk hangs. A new watch shows all
// changes.
type silentWatcher struct {
	clientv3.Watcher
	silent atomic.Bool
}

func (w *silentWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w.silent.Store(false)
	return filter(ctx, w.Watcher.Watch(ctx, key, opts...), func(*clientv3.Event) bool { return !w.silent.Load() })
}

// filter returns a watch that shows only the events that are to be shown.
func filter(ctx context.Context, watch clientv3.WatchChan, show func(*clientv3.Event) bool) clientv3.WatchChan {
	shown := make(chan clientv3.WatchResponse)
	go func() {
		defer close(shown)
		for resp := range watch {
			resp.Events = slices.DeleteFunc(resp.Events, func(e *clientv3.Event) bool { return !show(e) })
			select {
			case shown <- resp:
			case <-ctx.Done():
			}
		}
	}()
	return shown
}

// A snapshot contains all ids of one revision, however many pages it has, and starts
// again when that revision is compacted.
func TestSnapshotInPages(t *testing.T) {
	const ids = 2000
	e := startEtcd(t, 1, stack.EtcdOptions{})[0]
	client, prefix := newClient(t, e), "/service/"+roleOf(t)+"/"
	put := func(key, value string) int64 {
		resp, err := client.Put(context.Background(), key, value)
		if err != nil {
			t.Error(err)
			return 0
		}
		return resp.Header.Revision
	}
	put(prefix+"window/forever", "0s")
	for i := range ids {
		put(fmt.Sprintf("%sdone/forever/%016d/%016d", prefix, i%7, i), fmt.Sprintf("[%q]", fmt.Sprint(i)))
	}
	var reads, failed atomic.Int64
	p := start(t, e, claim.Options{}, func(c *clientv3.Client) {
		c.KV = reader{c.KV, func(read func() error) { // etcd is compacted before two of the pages are read
			if n := reads.Add(1); n == 3 || n == 6 {
				if _, err := client.Compact(context.Background(), put("other", "")); err != nil {
					t.Error(err)
				}
			}
			if read() != nil {
				failed.Add(1)
			}
		}}
	})
	if n := p.Remembered(); n != ids {
		t.Errorf("%d ids are remembered, want %d", n, ids)
	}
	if failed.Load() == 0 || reads.Load() < 9 {
		t.Errorf("%d reads, of which %d failed: no page was compacted away", reads.Load(), failed.Load())
	}
	for i := range ids {
		p.mustBeDone(fmt.Sprint(i))
	}
}

// reader calls get for each read.
type reader struct {
	clientv3.KV
	get func(read func() error)
}

func (r reader) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	r.get(func() error {
		resp, err = r.KV.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}
