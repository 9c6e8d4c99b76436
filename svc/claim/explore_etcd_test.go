package claim_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// simEtcd is what the protocol needs of etcd, in memory: transactions with
// nested ones, revisions, leases. It is used by one goroutine at a time.
type simEtcd struct {
	revision int64
	keys     map[string]*mvccpb.KeyValue
	leases   map[int64]bool

	// broken names a guard that the simulation leaves out, to see that the
	// exploration notices.
	broken string
}

func newSimEtcd() *simEtcd {
	return &simEtcd{revision: 1, keys: make(map[string]*mvccpb.KeyValue), leases: make(map[int64]bool)}
}

// end is the end of a lease, revoked or expired: its keys go with it.
func (e *simEtcd) end(lease int64) error {
	if !e.leases[lease] {
		return rpctypes.ErrGRPCLeaseNotFound
	}
	delete(e.leases, lease)
	e.revision++
	maps.DeleteFunc(e.keys, func(_ string, kv *mvccpb.KeyValue) bool { return kv.Lease == lease })
	return nil
}

// txn runs a transaction as etcd does: all or, for an unknown lease, nothing.
func (e *simEtcd) txn(req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	trial := &simEtcd{revision: e.revision + 1, keys: maps.Clone(e.keys), leases: e.leases, broken: e.broken}
	wrote := false
	resp, err := trial.run(req, e.keys, &wrote)
	if err != nil {
		return nil, err
	}
	e.keys = trial.keys
	if wrote {
		e.revision++
	}
	resp.Header = &etcdserverpb.ResponseHeader{Revision: e.revision}
	return resp, nil
}

func (e *simEtcd) run(req *etcdserverpb.TxnRequest, before map[string]*mvccpb.KeyValue, wrote *bool) (*etcdserverpb.TxnResponse, error) {
	resp := &etcdserverpb.TxnResponse{Succeeded: true}
	for _, c := range req.Compare {
		resp.Succeeded = resp.Succeeded && e.holds(c, before[string(c.Key)])
	}
	ops := req.Failure
	if resp.Succeeded {
		ops = req.Success
	}
	for _, op := range ops {
		one := &etcdserverpb.ResponseOp{}
		switch o := op.Request.(type) {
		case *etcdserverpb.RequestOp_RequestPut:
			put := o.RequestPut
			if put.Lease != 0 && !e.leases[put.Lease] {
				return nil, rpctypes.ErrGRPCLeaseNotFound
			}
			kv := &mvccpb.KeyValue{Key: put.Key, Value: put.Value, Lease: put.Lease, CreateRevision: e.revision, ModRevision: e.revision}
			if old := e.keys[string(put.Key)]; old != nil {
				kv.CreateRevision = old.CreateRevision
			}
			e.keys[string(put.Key)] = kv
			*wrote = true
			one.Response = &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: &etcdserverpb.PutResponse{}}
		case *etcdserverpb.RequestOp_RequestRange:
			get := &etcdserverpb.RangeResponse{}
			if kv := e.keys[string(o.RequestRange.Key)]; kv != nil {
				get.Kvs = []*mvccpb.KeyValue{kv}
			}
			one.Response = &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: get}
		case *etcdserverpb.RequestOp_RequestDeleteRange:
			delete(e.keys, string(o.RequestDeleteRange.Key))
			*wrote = true
			one.Response = &etcdserverpb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &etcdserverpb.DeleteRangeResponse{}}
		case *etcdserverpb.RequestOp_RequestTxn:
			nested, err := e.run(o.RequestTxn, before, wrote)
			if err != nil {
				return nil, err
			}
			one.Response = &etcdserverpb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		resp.Responses = append(resp.Responses, one)
	}
	return resp, nil
}

// holds evaluates one guard. All of the protocol's are equalities.
func (e *simEtcd) holds(c *etcdserverpb.Compare, kv *mvccpb.KeyValue) bool {
	if kv == nil {
		kv = &mvccpb.KeyValue{}
	}
	switch target := c.TargetUnion.(type) {
	case *etcdserverpb.Compare_CreateRevision:
		if target.CreateRevision == 0 && e.broken == "claim takes what is there" {
			return true
		}
		if target.CreateRevision != 0 && e.broken == "complete and release ignore the token" {
			return true
		}
		return kv.CreateRevision == target.CreateRevision
	case *etcdserverpb.Compare_ModRevision:
		if e.broken == "takeover ignores what happened since" {
			return kv.CreateRevision != 0
		}
		return kv.ModRevision == target.ModRevision
	case *etcdserverpb.Compare_Value:
		return bytes.Equal(kv.Value, target.Value)
	}
	panic("a guard that the simulation does not know")
}

// simKV and simLease are a process's way to the simulation: every transaction
// and every revocation waits there for the explorer.
type simKV struct {
	etcdserverpb.KVClient
	p *simProcess
}

func (c simKV) Txn(ctx context.Context, req *etcdserverpb.TxnRequest, _ ...grpc.CallOption) (*etcdserverpb.TxnResponse, error) {
	resp, err := c.p.call(ctx, "txn", req.String(), func() (any, error) { return c.p.x.etcd.txn(req) })
	if err != nil {
		return nil, err
	}
	return resp.(*etcdserverpb.TxnResponse), nil
}

type simLease struct {
	etcdserverpb.LeaseClient
	p *simProcess
}

// LeaseGrant numbers the leases of a process, so that a replay finds the same.
func (c simLease) LeaseGrant(ctx context.Context, _ *etcdserverpb.LeaseGrantRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseGrantResponse, error) {
	x := c.p.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	lease := int64(c.p.name[0]-'A'+1)*10 + int64(len(c.p.leases))
	x.etcd.leases[lease] = true
	c.p.leases = append(c.p.leases, lease)
	return &etcdserverpb.LeaseGrantResponse{ID: lease, TTL: 1 << 30}, nil
}

func (c simLease) LeaseRevoke(ctx context.Context, req *etcdserverpb.LeaseRevokeRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseRevokeResponse, error) {
	_, err := c.p.call(ctx, "revoke", req.String(), func() (any, error) { return nil, c.p.x.etcd.end(req.ID) })
	return &etcdserverpb.LeaseRevokeResponse{}, err
}

// LeaseKeepAlive answers every renewal at once, with so long a life that time
// has no part in the exploration; a lease is lost when the explorer says so.
func (c simLease) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[etcdserverpb.LeaseKeepAliveRequest, etcdserverpb.LeaseKeepAliveResponse], error) {
	s := &simStream{ctx: ctx, answers: c.p.renewals}
	return s, nil
}

type simStream struct {
	grpc.ClientStream
	ctx     context.Context
	answers chan *etcdserverpb.LeaseKeepAliveResponse
}

func (s *simStream) Send(req *etcdserverpb.LeaseKeepAliveRequest) error {
	select {
	case s.answers <- &etcdserverpb.LeaseKeepAliveResponse{ID: req.ID, TTL: 1 << 30}:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *simStream) Recv() (*etcdserverpb.LeaseKeepAliveResponse, error) {
	select {
	case a := <-s.answers:
		return a, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *simStream) CloseSend() error { return nil }

// describe is the state of the simulation with leases and revisions replaced
// by their ranks.
func (e *simEtcd) describe(rank func(int64) int64, owner func(value string) string) string {
	var b bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		kv := e.keys[key]
		b.WriteString(owner(string(kv.Value)))
		fmt.Fprint(&b, " ", rank(kv.CreateRevision), rank(kv.ModRevision), kv.Lease)
	}
	fmt.Fprint(&b, slices.Sorted(maps.Keys(e.leases)))
	return b.String()
}

func (s *simStream) Context() context.Context { return s.ctx }
