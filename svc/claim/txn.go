package claim

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The transactions of the protocol. Each tries first what is nearly always the
// case, that all ids of the batch are as expected, with one flat list that etcd
// checks quickly; only otherwise is each id decided by itself.

// claimTxn claims all ids of the batch at once if all are absent, and
// otherwise each by itself.
func (s *Etcd) claimTxn(ctx context.Context, batch []*request, ses *session) (*clientv3.TxnResponse, error) {
	absent := make([]clientv3.Cmp, len(batch))
	put := make([]clientv3.Op, len(batch))
	each := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		absent[i] = clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
		put[i] = clientv3.OpPut(key, s.instance, clientv3.WithLease(ses.lease))
		each[i] = clientv3.OpTxn(absent[i:i+1], put[i:i+1], []clientv3.Op{clientv3.OpGet(key)})
	}
	return s.kv.Txn(ctx).If(absent...).Then(put...).Else(each...).Commit()
}

// existing returns what claimTxn found in the place of the i-th id, nil if it
// was absent and is claimed now.
func existing(resp *clientv3.TxnResponse, i int) *mvccpb.KeyValue {
	if resp.Succeeded {
		return nil
	}
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

// completeTxn completes all ids of the batch at once if all claims are still
// ours, and otherwise each by itself.
func (s *Etcd) completeTxn(ctx context.Context, batch []*request, lease clientv3.LeaseID) (*clientv3.TxnResponse, error) {
	done := fmt.Sprintf("done %d", time.Now().Unix())
	ours := make([]clientv3.Cmp, len(batch))
	put := make([]clientv3.Op, len(batch))
	each := make([]clientv3.Op, len(batch))
	for i, r := range batch {
		key := s.key(r.id)
		ours[i] = clientv3.Compare(clientv3.CreateRevision(key), "=", r.grant.Token)
		put[i] = clientv3.OpPut(key, done, clientv3.WithLease(lease))
		ifAbsent := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}, put[i:i+1], nil)
		each[i] = clientv3.OpTxn(ours[i:i+1], put[i:i+1], []clientv3.Op{ifAbsent})
	}
	return s.kv.Txn(ctx).If(ours...).Then(put...).Else(each...).Commit()
}

// lost reports whether completeTxn found another claim in the place of the
// i-th id's.
func lost(resp *clientv3.TxnResponse, i int) bool {
	if resp.Succeeded {
		return false
	}
	one := resp.Responses[i].GetResponseTxn()
	return !one.Succeeded && !one.Responses[0].GetResponseTxn().Succeeded
}
