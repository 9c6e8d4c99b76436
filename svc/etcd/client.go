// Package etcd calls etcd until it answers: through outages, frozen members, changes of
// the leader, and refusals that an operator must end. It logs an outage and a refusal
// once, with a hint, however many calls they meet.
package etcd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/streamdal/gophercon2021/svc/outage"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// MaxOps is the number of operations that etcd must allow in a transaction; see [Hint].
const MaxOps = 48

// Client repeats each call until it is answered. A call fails when ctx ends, with the
// cause and the last answer of etcd, or with the answer if no other can follow:
// [rpctypes.ErrLeaseNotFound], [rpctypes.ErrCompacted] or [rpctypes.ErrFutureRev].
//
// A call that is not answered in time is sent again beside the first, so etcd may carry
// it out more than once. Many goroutines may use a client at once.
type Client struct {
	Raw *clientv3.Client // its own calls are not repeated

	unreachable *outage.Log
	refusals    *outage.Log  // only an operator can end them; other calls may be answered meanwhile
	refused     atomic.Value // the kind of call that was refused last; a string
	quickUntil  atomic.Int64 // until then quickResend applies; Unix nanoseconds
	tries       sync.WaitGroup
}

// New returns a client that makes its calls with raw's KV, Lease and Watcher.
func New(raw *clientv3.Client, log *slog.Logger) *Client {
	return &Client{
		Raw: raw,
		unreachable: &outage.Log{
			Logger: log, Level: slog.LevelWarn,
			Begins: "etcd is unreachable: events wait unacknowledged", Ends: "etcd is reachable again",
			Hint: "check that etcd is up, and ETCD_ENDPOINTS",
		},
		refusals: &outage.Log{
			Logger: log, Level: slog.LevelError,
			Begins: "etcd refuses a call: events wait unacknowledged", Ends: "etcd accepts calls again",
		},
	}
}

// Close waits until the calls that were given up have returned, and closes the client.
func (c *Client) Close() error {
	c.tries.Wait()
	return c.Raw.Close()
}

// Get reads keys.
func (c *Client) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return call(ctx, c, "get", resendAfter, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return c.Raw.Get(ctx, key, opts...)
	})
}

// Txn carries out the operations in then if the condition holds, and those in otherwise if
// not. If then makes the condition false, it takes effect only once.
func (c *Client) Txn(ctx context.Context, condition clientv3.Cmp, then []clientv3.Op, otherwise ...clientv3.Op) (*clientv3.TxnResponse, error) {
	return call(ctx, c, "txn", resendAfter, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return c.Raw.Txn(ctx).If(condition).Then(then...).Else(otherwise...).Commit()
	})
}

// Lease is a lease that was granted. It does not expire before its time has passed since
// Asked.
type Lease struct {
	ID    clientv3.LeaseID
	Asked time.Time
}

// Grant grants a lease of ttl, rounded up to seconds. If the call is sent twice, etcd may
// grant a second lease, which expires unused.
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (Lease, error) {
	return call(ctx, c, "grant", resendAfter, func(ctx context.Context) (Lease, error) {
		asked := time.Now()
		resp, err := c.Raw.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
		if err != nil {
			return Lease{}, err
		}
		return Lease{resp.ID, asked}, nil
	})
}

// Revoke ends a lease, with all keys under it. The lease may have ended before.
func (c *Client) Revoke(ctx context.Context, lease clientv3.LeaseID) error {
	_, err := call(ctx, c, "revoke", resendAfter, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return c.Raw.Revoke(ctx, lease)
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// Ping fails while etcd refuses a call, as it does when it is full. Otherwise it reads a
// key once through a majority.
func (c *Client) Ping(ctx context.Context, key string) error {
	if err := c.refusals.Err(); err != nil {
		return err
	}
	_, err := c.Raw.Get(ctx, key)
	return err
}
