package etcd

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Renewer keeps a lease alive for one goroutine. It uses a stream for as long as that
// answers: with a user name the client logs in for each new stream, which is expensive for
// etcd. The client's own KeepAliveOnce opens one for each renewal, and tries again without
// a pause while etcd is unreachable.
type Renewer struct {
	c      *Client
	lease  clientv3.LeaseID
	resend time.Duration
	remote etcdserverpb.LeaseClient
	idle   atomic.Pointer[stream] // has answered all its renewals; nil: there is none

	alive context.Context // of all streams; ends with Close
	end   context.CancelFunc
}

// stream is a stream of renewals. Its end ends those that are under way.
type stream struct {
	etcdserverpb.Lease_LeaseKeepAliveClient
	end context.CancelFunc
}

// NewRenewer returns a renewer of a lease. A renewal is sent again on another stream after
// resend, or after a second if that is less.
func (c *Client) NewRenewer(lease clientv3.LeaseID, resend time.Duration) *Renewer {
	r := &Renewer{c: c, lease: lease, resend: min(resendAfter, resend), remote: etcdserverpb.NewLeaseClient(c.Raw.ActiveConnection())}
	r.alive, r.end = context.WithCancel(c.Raw.Ctx())
	return r
}

// Close ends the stream. The lease remains.
func (r *Renewer) Close() { r.end() }

// Renew renews the lease, and returns when the renewal that was answered was sent.
func (r *Renewer) Renew(ctx context.Context) (sent time.Time, err error) {
	return call(ctx, r.c, "renew", r.resend, func(ctx context.Context) (time.Time, error) {
		sent := time.Now()
		if s := r.idle.Swap(nil); s != nil {
			if err := r.renew(ctx, s); err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return sent, err
			}
			// The stream may have ended since the last renewal.
		}
		s, err := r.open(ctx)
		if err == nil {
			err = r.renew(ctx, s)
		}
		return sent, rpctypes.Error(err)
	})
}

// open opens a stream, which may outlive ctx.
func (r *Renewer) open(ctx context.Context) (*stream, error) {
	alive, end := context.WithCancel(r.alive)
	defer context.AfterFunc(ctx, end)()
	remote, err := r.remote.LeaseKeepAlive(alive)
	if err != nil {
		end()
	}
	return &stream{remote, end}, err
}

// renew renews the lease on a stream, and keeps the stream if it answers before ctx ends.
func (r *Renewer) renew(ctx context.Context, s *stream) error {
	stop := context.AfterFunc(ctx, s.end)
	err := s.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(r.lease)})
	var resp *etcdserverpb.LeaseKeepAliveResponse
	if err == nil {
		resp, err = s.Recv()
	}
	if !stop() || err != nil {
		s.end()
	} else if s = r.idle.Swap(s); s != nil { // another try of this renewal was answered, too
		s.end()
	}
	if err == nil && resp.TTL <= 0 {
		return rpctypes.ErrLeaseNotFound
	}
	return err
}
