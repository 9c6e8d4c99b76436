package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// leases renews leases on a stream that it keeps: with a user name the client logs in for
// each new stream, which is expensive for etcd. The client's own KeepAliveOnce opens one
// for each renewal, and tries again without a pause while etcd is unreachable.
type leases struct {
	clientv3.Lease
	remote etcdserverpb.LeaseClient
	alive  context.Context // until the client is closed
	idle   chan renewalStream
}

// renewalStream is a stream of renewals, each of which has been answered.
type renewalStream struct {
	etcdserverpb.Lease_LeaseKeepAliveClient
	end context.CancelFunc
}

func newLeases(client *clientv3.Client) *leases {
	return &leases{client.Lease, etcdserverpb.NewLeaseClient(client.ActiveConnection()), client.Ctx(), make(chan renewalStream, 1)}
}

// KeepAliveOnce renews a lease.
func (l *leases) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	select {
	case stream := <-l.idle:
		resp, err := l.renew(ctx, stream, id)
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return resp, err
		}
		// The stream may have ended since the last renewal.
	default:
	}
	stream, err := l.open(ctx)
	if err != nil {
		return nil, rpctypes.Error(err)
	}
	return l.renew(ctx, stream, id)
}

// open opens a stream, which may outlive ctx.
func (l *leases) open(ctx context.Context) (renewalStream, error) {
	alive, end := context.WithCancel(l.alive)
	defer context.AfterFunc(ctx, end)()
	stream, err := l.remote.LeaseKeepAlive(alive)
	if err != nil {
		end()
	}
	return renewalStream{stream, end}, err
}

// renew renews a lease and keeps the stream, or ends it if there was no answer.
func (l *leases) renew(ctx context.Context, stream renewalStream, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	stop := context.AfterFunc(ctx, stream.end)
	err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)})
	var resp *etcdserverpb.LeaseKeepAliveResponse
	if err == nil {
		resp, err = stream.Recv()
	}
	if !stop() || err != nil {
		stream.end()
	} else {
		select {
		case l.idle <- stream:
		default:
			stream.end()
		}
	}
	switch {
	case err != nil:
		return nil, rpctypes.Error(err)
	case resp.TTL <= 0:
		return nil, rpctypes.ErrLeaseNotFound
	}
	return &clientv3.LeaseKeepAliveResponse{ResponseHeader: resp.Header, ID: id, TTL: resp.TTL}, nil
}
