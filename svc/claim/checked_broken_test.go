package claim_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// splitting divides each write into the operations that are carried out under its condition, and others
// that are carried out a moment later, without one.
func splitting(split func(ops []clientv3.Op) (now, later []clientv3.Op)) func(*clientv3.Client) {
	return func(c *clientv3.Client) { c.KV = splitKV{c.KV, split} }
}

type splitKV struct {
	clientv3.KV
	split func(ops []clientv3.Op) (now, later []clientv3.Op)
}

func (kv splitKV) Txn(ctx context.Context) clientv3.Txn { return &splitTxn{kv.KV.Txn(ctx), kv, nil} }

type splitTxn struct {
	clientv3.Txn
	kv    splitKV
	later []clientv3.Op
}

func (t *splitTxn) If(conditions ...clientv3.Cmp) clientv3.Txn { t.Txn.If(conditions...); return t }
func (t *splitTxn) Else(ops ...clientv3.Op) clientv3.Txn       { t.Txn.Else(ops...); return t }
func (t *splitTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	now, later := t.kv.split(ops)
	t.later = later
	t.Txn.Then(now...)
	return t
}

func (t *splitTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	if err == nil && resp.Succeeded && len(t.later) > 0 {
		time.AfterFunc(between(0, 300*time.Millisecond), func() {
			ctx, cancel := context.WithTimeout(context.Background(), ttl)
			defer cancel()
			t.kv.KV.Txn(ctx).Then(t.later...).Commit()
		})
	}
	return resp, err
}

// isRecord reports whether an operation records ids.
func isRecord(op clientv3.Op) bool {
	return op.IsPut() && bytes.Contains(op.KeyBytes(), []byte("/done/"))
}

func withoutRecords(ops []clientv3.Op) (now, later []clientv3.Op) {
	return slices.DeleteFunc(slices.Clone(ops), isRecord), nil
}

func recordsLater(ops []clientv3.Op) (now, later []clientv3.Op) {
	now, _ = withoutRecords(ops)
	return now, slices.DeleteFunc(slices.Clone(ops), func(op clientv3.Op) bool { return !isRecord(op) })
}

// copied leaves out of the copy the first operation, which counts the write: a copy that is counted is
// noticed as the end of the session.
func copied(ops []clientv3.Op) (now, later []clientv3.Op) { return ops, ops[1:] }

// ignoreClaims hides the claims of the sessions of others from the claimer's watch.
func ignoreClaims(c *clientv3.Client) { c.Watcher = blindWatcher{c.Watcher, new(sync.Map)} }

type blindWatcher struct {
	clientv3.Watcher
	own *sync.Map // the leases of the sessions of the broken claimer
}

func (w blindWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return filter(ctx, w.Watcher.Watch(ctx, key, opts...), func(e *clientv3.Event) bool {
		if bytes.Contains(e.Kv.Value, []byte(brokenType)) {
			w.own.Store(e.Kv.Lease, true)
		}
		_, own := w.own.Load(e.Kv.Lease)
		return own || !e.IsCreate() || !bytes.Contains(e.Kv.Key, []byte("/claim/"))
	})
}
