package etcd

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// countedStreams counts the streams of renewals that are opened.
type countedStreams struct {
	etcdserverpb.LeaseClient
	opened int
}

func (c *countedStreams) LeaseKeepAlive(ctx context.Context, o ...grpc.CallOption) (etcdserverpb.Lease_LeaseKeepAliveClient, error) {
	c.opened++
	return c.LeaseClient.LeaseKeepAlive(ctx, o...)
}

// Renewals share a stream, because with a user name each new one costs a login. A stream
// that has ended is replaced.
func TestRenewalsShareAStream(t *testing.T) {
	server, err := stack.StartEtcd(t.Context(), filepath.Join(t.TempDir(), "etcd"), stack.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := Dial(t.Context(), Server{Endpoints: []string{server.Endpoint()}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client := c.Raw
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lease, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	leases := client.Lease.(*leases)
	streams := &countedStreams{LeaseClient: leases.remote}
	leases.remote = streams
	renew := func(ctx context.Context, id clientv3.LeaseID, want error) {
		t.Helper()
		if _, err := client.KeepAliveOnce(ctx, id); !errors.Is(err, want) {
			t.Errorf("the renewal returns %v, want %v", err, want)
		}
	}
	for range 5 {
		renew(ctx, lease.ID, nil)
	}
	renew(ctx, 1, rpctypes.ErrLeaseNotFound)
	renew(ctx, lease.ID, nil)
	if streams.opened != 1 {
		t.Errorf("%d streams were opened, want 1", streams.opened)
	}
	ended := <-leases.idle
	ended.end()
	leases.idle <- ended
	renew(ctx, lease.ID, nil)
	if streams.opened != 2 {
		t.Errorf("%d streams were opened, want another one for the ended one", streams.opened)
	}
	over, end := context.WithCancel(ctx)
	end()
	if _, err := client.KeepAliveOnce(over, lease.ID); err == nil {
		t.Error("a lease is renewed after the end of the context")
	}
	renew(ctx, lease.ID, nil)
}
