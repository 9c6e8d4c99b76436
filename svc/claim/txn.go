package claim

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The transactions of the protocol. What is nearly always the case, that all
// ids of a batch are as expected, is tried first with one flat list, which is
// small on the wire and in etcd's log and quickly checked. Only if it fails is
// each id decided by itself, in a transaction of its own inside one.

// claimAll claims all ids of the batch if all are absent, or none.
func (s *Etcd) claimAll(ctx context.Context, batch []*request, ses *session) (*clientv3.TxnResponse, error) {
	absent := make([]clientv3.Cmp, len(batch))
	put := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		absent[i] = isAbsent(key)
		put[i] = clientv3.OpPut(key, s.instance, clientv3.WithLease(ses.lease))
	}
	return s.kv.Txn(ctx).If(absent...).Then(put...).Commit()
}

// claimEach claims the ids of the batch that are absent and reads the others.
func (s *Etcd) claimEach(ctx context.Context, batch []*request, ses *session) (*clientv3.TxnResponse, error) {
	each := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		each[i] = clientv3.OpTxn([]clientv3.Cmp{isAbsent(key)},
			[]clientv3.Op{clientv3.OpPut(key, s.instance, clientv3.WithLease(ses.lease))},
			[]clientv3.Op{clientv3.OpGet(key)})
	}
	return s.kv.Txn(ctx).Then(each...).Commit()
}

// existing returns what claimEach has read in the place of the i-th id, nil if
// it was absent and is claimed now.
func existing(resp *clientv3.TxnResponse, i int) *mvccpb.KeyValue {
	one := resp.Responses[i].GetResponseTxn()
	if one.Succeeded {
		return nil
	}
	return one.Responses[0].GetResponseRange().Kvs[0]
}

// takeOver moves claims of this process, each if it still is as it was found,
// to the current session: their answers were lost, or their session was.
//
// The guard is the ModRevision because a takeover may be committed late, too:
// after a later one it must not move the claim back to a retired session.
func (s *Etcd) takeOver(ctx context.Context, found []*mvccpb.KeyValue, ses *session) (*clientv3.TxnResponse, error) {
	each := make([]clientv3.Op, len(found))
	for i, kv := range found {
		key := string(kv.Key)
		each[i] = clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)},
			[]clientv3.Op{clientv3.OpPut(key, s.instance, clientv3.WithLease(ses.lease))}, nil)
	}
	return s.kv.Txn(ctx).Then(each...).Commit()
}

// completeAll completes all ids of the batch if all claims are still ours, or
// none.
func (s *Etcd) completeAll(ctx context.Context, batch []*request, lease clientv3.LeaseID) (*clientv3.TxnResponse, error) {
	value := doneNow()
	ours := make([]clientv3.Cmp, len(batch))
	put := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		ours[i] = isOwned(key, r.grant.Token)
		put[i] = clientv3.OpPut(key, value, clientv3.WithLease(lease))
	}
	return s.kv.Txn(ctx).If(ours...).Then(put...).Commit()
}

// completeEach completes the ids of the batch whose claims are still ours, or
// absent: they have expired, and nobody took them.
func (s *Etcd) completeEach(ctx context.Context, batch []*request, lease clientv3.LeaseID) (*clientv3.TxnResponse, error) {
	value := doneNow()
	each := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		put := []clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(lease))}
		ifAbsent := clientv3.OpTxn([]clientv3.Cmp{isAbsent(key)}, put, nil)
		each[i] = clientv3.OpTxn([]clientv3.Cmp{isOwned(key, r.grant.Token)}, put, []clientv3.Op{ifAbsent})
	}
	return s.kv.Txn(ctx).Then(each...).Commit()
}

// lost reports whether completeEach found another claim in the place of the
// i-th id's.
func lost(resp *clientv3.TxnResponse, i int) bool {
	one := resp.Responses[i].GetResponseTxn()
	return !one.Succeeded && !one.Responses[0].GetResponseTxn().Succeeded
}

func isAbsent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

func isOwned(key string, token int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", token)
}

func doneNow() string { return fmt.Sprintf("done %d", time.Now().Unix()) }
