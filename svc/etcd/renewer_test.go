package etcd

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// members stands for the members of an etcd. Each renews a lease on one stream.
type members struct {
	etcdserverpb.LeaseClient
	ttl int64 // in their answers

	mu     sync.Mutex
	opened []context.Context // of the streams
}

func (m *members) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (etcdserverpb.Lease_LeaseKeepAliveClient, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened = append(m.opened, ctx)
	return &memberStream{members: m, ctx: ctx, frozen: len(m.opened) == 1}, ctx.Err()
}

type memberStream struct {
	grpc.ClientStream
	*members
	ctx    context.Context
	frozen bool
}

func (s *memberStream) Send(*etcdserverpb.LeaseKeepAliveRequest) error {
	if s.ctx.Err() != nil {
		return io.EOF
	}
	return nil
}

func (s *memberStream) Recv() (*etcdserverpb.LeaseKeepAliveResponse, error) {
	if s.frozen {
		<-s.ctx.Done()
	}
	return &etcdserverpb.LeaseKeepAliveResponse{TTL: s.ttl}, s.ctx.Err()
}

// Renewals share a stream, because with a user name each new one costs a login. A stream that
// does not answer, or has ended, is replaced, and none outlives the renewer.
func TestRenewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, lines := newLogged()
		c.Raw = clientv3.NewCtxClient(t.Context())
		const resend = 250 * time.Millisecond
		r, m := c.NewRenewer(1, resend), &members{ttl: 2}
		r.remote = m
		open := func() (open int) {
			synctest.Wait()
			for _, ctx := range m.opened {
				if ctx.Err() == nil {
					open++
				}
			}
			return open
		}
		renew := func(wantAfter time.Duration, wantOpened int, want error) {
			t.Helper()
			began := time.Now()
			sent, err := r.Renew(t.Context())
			if after := sent.Sub(began); !errors.Is(err, want) || after != wantAfter || time.Since(sent) != 0 {
				t.Errorf("the renewal that was answered with %v was sent after %v, want %v and %v", err, after, want, wantAfter)
			}
			if open() != 1 || len(m.opened) != wantOpened {
				t.Errorf("%d streams were opened, and %d are open, want %d and 1", len(m.opened), open(), wantOpened)
			}
		}
		renew(resend, 2, nil) // the first member is frozen
		renew(0, 2, nil)
		renew(0, 2, nil)
		r.idle.Load().end()
		renew(0, 3, nil)
		m.ttl = 0
		renew(0, 3, rpctypes.ErrLeaseNotFound)
		over, end := context.WithCancel(t.Context())
		end()
		if _, err := r.Renew(over); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of its context the renewal returns %v", err)
		}
		r.Close()
		if n := open(); n != 0 || lines.Len() > 0 {
			t.Errorf("%d streams are left open; log:\n%s", n, lines)
		}
	})
}
