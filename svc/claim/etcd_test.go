package claim_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/claim/claimtest"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// etcdAt is the real etcd of this package's tests.
var etcdAt string

func TestMain(m *testing.M) { os.Exit(withEtcd(m.Run)) }

func withEtcd(run func() int) int {
	dir, err := os.MkdirTemp("", "claim")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := stack.StartEtcd(ctx, dir, stack.EtcdOptions{})
	if err != nil {
		panic(err)
	}
	etcdAt = server.Endpoint()
	code := run()
	server.Close()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// newClient returns a client of the real etcd.
func newClient(t testing.TB, options ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdAt}, Logger: zap.NewNop(), DialOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

var roles atomic.Int64

// newRole returns a role that no other test uses.
func newRole() string { return fmt.Sprintf("test%d", roles.Add(1)) }

// newStore returns the store of one more process of a role. It is closed, and
// its session revoked if nothing is held, with the test.
func newStore(t testing.TB, client *clientv3.Client, o claim.Options) *claim.Etcd {
	t.Helper()
	life, cancel := context.WithCancel(context.Background())
	o.Work, o.Life = life, life
	if o.TTL == 0 {
		o.TTL = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	store := claim.NewEtcd(client.KV, client.Lease, o)
	t.Cleanup(func() {
		store.Close()
		cancel()
	})
	return store
}

func TestEtcdContract(t *testing.T) {
	claimtest.Contract(t, func(t *testing.T) func() claimtest.Process {
		role := newRole()
		return func() claimtest.Process {
			client := newClient(t)
			store := newStore(t, client, claim.Options{Role: role})
			return claimtest.Process{Store: store, Expire: func() {
				if _, err := client.Revoke(context.Background(), store.SessionLease()); err != nil {
					t.Error(err)
				}
			}}
		}
	})
}

// The key and the values are what the contract says: operators read them.
func TestEtcdFormat(t *testing.T) {
	client, role := newClient(t), newRole()
	store := newStore(t, client, claim.Options{Role: role, Window: time.Hour})
	a, err := store.Claim("123")
	if err != nil {
		t.Fatal(err)
	}
	key := "/service/" + role + "/32/123"
	check := func(value string) *clientv3.GetResponse {
		t.Helper()
		resp, err := client.Get(context.Background(), key)
		if err != nil || len(resp.Kvs) != 1 || !strings.HasPrefix(string(resp.Kvs[0].Value), value) {
			all, _ := client.Get(context.Background(), "/service/"+role, clientv3.WithPrefix())
			t.Fatalf("%s is not %q: %v", key, value, all.Kvs)
		}
		return resp
	}
	claimed := check("claimed ")
	if claimed.Kvs[0].CreateRevision != a.Grant.Token {
		t.Errorf("the token is %d, the key's CreateRevision %d", a.Grant.Token, claimed.Kvs[0].CreateRevision)
	}
	if _, err := store.Complete(a.Grant); err != nil {
		t.Fatal(err)
	}
	done := check(fmt.Sprintf("done %d", time.Now().Unix()/100)) // to 100 s
	ttl, err := client.TimeToLive(context.Background(), clientv3.LeaseID(done.Kvs[0].Lease))
	if err != nil || ttl.GrantedTTL < 3600 || ttl.GrantedTTL > 3600*5/4 {
		t.Errorf("the record lives for %d s (%v), want an hour at least", ttl.GrantedTTL, err)
	}
}

// Records expire after DEDUP_WINDOW and not before; 0 keeps them for ever.
func TestRetention(t *testing.T) {
	client, role := newClient(t), newRole()
	short := newStore(t, client, claim.Options{Role: role, Window: 2 * time.Second})
	forever := newStore(t, client, claim.Options{Role: role})
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			store := short
			if i%2 == 1 {
				store = forever
			}
			a, err := store.Claim(fmt.Sprint(i))
			if err == nil {
				_, err = store.Complete(a.Grant)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		resp, err := client.Get(context.Background(), "/service/"+role, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		passed := time.Since(began)
		if resp.Count < 300 && passed < 2*time.Second {
			t.Fatalf("%d of 300 records are left after %v", resp.Count, passed)
		}
		if resp.Count == 150 {
			break
		}
		if passed > 20*time.Second {
			t.Fatalf("%d records are left after %v, want 150", resp.Count, passed)
		}
	}
	if a, err := forever.Claim("1"); err != nil || a.State != claim.Done || a.Life != claim.Forever {
		t.Errorf("a record for ever: %+v, %v", a, err)
	}
	if a, err := short.Claim("0"); err != nil || a.State != claim.Granted {
		t.Errorf("an expired record: %+v, %v", a, err)
	}
}

// Answers get lost at random while two processes race for ids. In the end every
// id is done, was granted to one at a time, and no claim is left, although the
// processes live on.
func TestLostAnswers(t *testing.T) {
	const ids, copies = 400, 3
	role := newRole()
	var lost atomic.Int64
	drop := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if !strings.HasSuffix(method, "/Txn") && !strings.HasSuffix(method, "/LeaseGrant") || rand.IntN(5) > 0 {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		lost.Add(1)
		if rand.IntN(2) == 0 { // the request
			return status.Error(codes.Unavailable, "lost on the way there")
		}
		if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "lost on the way back")
	}
	var owners [ids]atomic.Int32
	var done [ids]atomic.Int32
	var wg sync.WaitGroup
	for range 2 {
		store := newStore(t, newClient(t, grpc.WithChainUnaryInterceptor(drop)), claim.Options{Role: role, TTL: time.Minute, Log: slog.New(slog.DiscardHandler)})
		keeper := claim.NewKeeper(store, claim.NewCache(ids, 0))
		for i := range ids * copies {
			wg.Go(func() {
				id := i % ids
				// Some deliveries are gone before they are answered.
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(3000))*time.Millisecond)
				if i >= ids {
					ctx, cancel = context.WithCancel(t.Context())
				}
				defer cancel()
				c, err := keeper.Claim(ctx, fmt.Sprint(id))
				if err != nil {
					return
				}
				if n := owners[id].Add(1); n != 1 {
					t.Errorf("id %d has %d owners", id, n)
				}
				defer owners[id].Add(-1)
				if rand.IntN(4) == 0 && i < ids {
					owners[id].Add(-1)
					c.Release()
					owners[id].Add(1)
					return
				}
				done[id].Add(1)
				owners[id].Add(-1)
				if err := c.Complete(); err != nil {
					t.Errorf("id %d: %v", id, err)
				}
				owners[id].Add(1)
			})
		}
	}
	wg.Wait()
	for id := range ids {
		if n := done[id].Load(); n != 1 {
			t.Errorf("id %d was done %d times", id, n)
		}
	}
	// Sessions whose answers were lost are revoked in the background.
	client := newClient(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for range tick.C {
		resp, err := client.Get(t.Context(), "/service/"+role, clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, kv := range resp.Kvs {
			if !strings.HasPrefix(string(kv.Value), "done ") {
				left = append(left, string(kv.Key))
			}
		}
		if len(resp.Kvs) == ids && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d ids are recorded, claims left: %q", len(resp.Kvs), ids, left)
		}
	}
	t.Logf("%d answers or requests lost", lost.Load())
}
