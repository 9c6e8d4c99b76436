package claim_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A call that etcd keeps refusing is logged once, with a hint. The work waits and is
// recorded once the cause is fixed.
func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		options stack.EtcdOptions
		refuse  func(t *testing.T, p *process) (fix func())
		hint    string
	}{
		"too few operations": {
			stack.EtcdOptions{Config: map[string]any{"max-txn-ops": 2}},
			func(t *testing.T, p *process) func() { return nil },
			"--max-txn-ops to 48",
		},
		"full": {
			stack.EtcdOptions{QuotaBytes: 4 << 20},
			fill, "etcdctl alarm disarm",
		},
		"a user is required": {
			stack.EtcdOptions{}, requireUser, "set ETCD_USERNAME",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client := newClient(t, newEtcd(t, tt.options))
			kv := &counting{KV: client.KV}
			client.KV = kv
			// The session must not be lost meanwhile, on a slow machine: the view would be read first.
			p := start(t, client, client, claim.Options{Role: newRole(), TTL: time.Hour, Window: time.Hour})
			c := p.mustClaim("1")
			fix := tt.refuse(t, p)
			completed := make(chan error, 1)
			go func() { completed <- p.Complete(c) }()
			p.log.await("level=ERROR", "etcd refuses a call", tt.hint)
			if p.Ping(t.Context()) == nil {
				t.Error("the process is ready while its write is refused")
			}
			before := kv.txns.Load()
			eventually(t, func() error {
				if kv.txns.Load() < before+3 {
					return errors.New("the write is not retried")
				}
				return nil
			})
			if n := len(p.log.find("level=ERROR")); n != 1 {
				t.Errorf("%d errors are logged: %v", n, p.log.find("level=ERROR"))
			}
			if fix == nil {
				return
			}
			fix()
			if err := <-completed; err != nil {
				t.Error(err)
			}
			p.log.await("etcd accepts calls again")
			if err := p.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// While etcd refuses a new session in place of a lost one, the view is not read again and
// again.
func TestLostWhileFull(t *testing.T) {
	client := newClient(t, newEtcd(t, stack.EtcdOptions{QuotaBytes: 4 << 20}))
	lease := &countedGrants{Lease: client.Lease}
	client.Lease = lease
	p := start(t, client, client, claim.Options{Role: newRole(), Window: time.Hour})
	fix := fill(t, p)
	if _, err := client.Revoke(t.Context(), p.lease); err != nil {
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
	fix()
	p.mustComplete("1")
}

// countedGrants counts the requests for a lease.
type countedGrants struct {
	clientv3.Lease
	n atomic.Int64
}

func (c *countedGrants) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	c.n.Add(1)
	return c.Lease.Grant(ctx, ttl)
}

// While the leases of new sessions are lost at once, as when ETCD_ENDPOINTS names members of
// different clusters, etcd is not asked for them without a pause, and the log says so once.
func TestLeasesOfNewSessionsAreLost(t *testing.T) {
	client := newClient(t, sharedEtcd(t))
	lease := &lostLeases{countedGrants{Lease: client.Lease}}
	client.Lease = lease
	began := time.Now()
	p := start(t, client, client, claim.Options{Role: newRole(), Window: time.Hour})
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("%d leases were granted within %v", lease.n.Load(), took)
	}
	if n := len(p.log.find("level=WARN", "ETCD_ENDPOINTS")); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
}

// lostLeases grants leases of which the first six have ended already.
type lostLeases struct{ countedGrants }

func (l *lostLeases) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	resp, err := l.countedGrants.Grant(ctx, ttl)
	if err == nil && l.n.Load() <= 6 {
		_, err = l.Lease.Revoke(ctx, resp.ID)
	}
	return resp, err
}

// An id that cannot be stored unchanged, or is too long to be stored, is refused at once.
func TestInvalidID(t *testing.T) {
	p := startOn(t, sharedEtcd(t), claim.Options{Role: newRole(), Window: time.Hour})
	for _, id := range []string{"\xff", strings.Repeat("x", 10_001)} {
		if _, err := p.Claim(t.Context(), id); !errors.Is(err, claim.ErrInvalidID) {
			t.Errorf("claim of an id of %d bytes: %v", len(id), err)
		}
	}
	p.mustComplete(strings.Repeat("\x01", 10_000)) // grows sixfold in JSON
}

// counting counts the transactions of a client.
type counting struct {
	clientv3.KV
	txns atomic.Int64
}

func (c *counting) Txn(ctx context.Context) clientv3.Txn {
	c.txns.Add(1)
	return c.KV.Txn(ctx)
}

// fill writes until etcd has no space left.
func fill(t *testing.T, p *process) (fix func()) {
	p.mustComplete("0") // opens the window
	for {
		if _, err := p.client.Put(t.Context(), "fill", string(make([]byte, 1<<20))); err != nil {
			break
		}
	}
	return func() {
		resp, err := p.client.Get(t.Context(), "fill")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.client.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.client.Defragment(t.Context(), p.client.Endpoints()[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := p.client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
			t.Fatal(err)
		}
	}
}

// requireUser turns on authentication in etcd.
func requireUser(t *testing.T, p *process) (fix func()) {
	p.mustComplete("0")
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(p.client.UserAdd(ctx, "root", "secret"))
	must(p.client.RoleAdd(ctx, "root"))
	must(p.client.UserGrantRole(ctx, "root", "root"))
	must(p.client.AuthEnable(ctx))
	root, err := clientv3.New(clientv3.Config{Endpoints: p.client.Endpoints(), Username: "root", Password: "secret"})
	must(root, err)
	t.Cleanup(func() { root.Close() })
	return func() { must(root.AuthDisable(ctx)) }
}

// compacting compacts etcd before two of the pages of a snapshot are read.
type compacting struct {
	clientv3.KV
	t       *testing.T
	gets    atomic.Int64
	failed  atomic.Int64
	compact func()
}

func (c *compacting) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if n := c.gets.Add(1); n == 3 || n == 6 {
		c.compact()
	}
	resp, err := c.KV.Get(ctx, key, opts...)
	if err != nil {
		c.failed.Add(1)
	}
	return resp, err
}

// A snapshot contains all ids of one revision, however many pages it has, and starts
// again when that revision is compacted.
func TestSnapshotInPages(t *testing.T) {
	const ids = 2000
	etcd, role := newEtcd(t, stack.EtcdOptions{}), newRole()
	client := newClient(t, etcd)
	if _, err := client.Put(t.Context(), "/service/"+role+"/window/forever", "0s"); err != nil {
		t.Fatal(err)
	}
	for i := range ids {
		key := fmt.Sprintf("/service/%s/done/forever/%016d/%016d", role, i%7, i)
		if _, err := client.Put(t.Context(), key, fmt.Sprintf("[%q]", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	kv := &compacting{KV: client.KV, t: t}
	kv.compact = func() {
		resp, err := client.Put(context.Background(), "other", "")
		if err == nil {
			_, err = client.Compact(context.Background(), resp.Header.Revision)
		}
		if err != nil {
			t.Error(err)
		}
	}
	client.KV = kv
	p := start(t, client, client, claim.Options{Role: role})
	if n := p.Remembered(); n != ids {
		t.Errorf("%d ids are remembered, want %d", n, ids)
	}
	if kv.failed.Load() == 0 || kv.gets.Load() < 9 {
		t.Errorf("%d reads, of which %d failed: no page was compacted away", kv.gets.Load(), kv.failed.Load())
	}
	for i := range ids {
		p.mustBeDone(fmt.Sprint(i))
	}
}
