package claim_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// brokenTxn is a transaction whose Commit calls commit instead.
type brokenTxn struct {
	ctx          context.Context
	kv           clientv3.KV
	conditions   []clientv3.Cmp
	then, orElse []clientv3.Op
	commit       func(*brokenTxn) (*clientv3.TxnResponse, error)
}

func (b *brokenTxn) If(c ...clientv3.Cmp) clientv3.Txn      { b.conditions = c; return b }
func (b *brokenTxn) Then(ops ...clientv3.Op) clientv3.Txn   { b.then = ops; return b }
func (b *brokenTxn) Else(ops ...clientv3.Op) clientv3.Txn   { b.orElse = ops; return b }
func (b *brokenTxn) Commit() (*clientv3.TxnResponse, error) { return b.commit(b) }
func (b *brokenTxn) send(then []clientv3.Op) (*clientv3.TxnResponse, error) {
	return b.kv.Txn(b.ctx).If(b.conditions...).Then(then...).Else(b.orElse...).Commit()
}

// records divides the operations into those that record ids and the others.
func (b *brokenTxn) records() (records, others []clientv3.Op) {
	for _, op := range b.then {
		if op.IsPut() && bytes.Contains(op.KeyBytes(), []byte("/done/")) {
			records = append(records, op)
		} else {
			others = append(others, op)
		}
	}
	return records, others
}

type brokenKV struct {
	clientv3.KV
	commit func(*brokenTxn) (*clientv3.TxnResponse, error)
}

func (k brokenKV) Txn(ctx context.Context) clientv3.Txn {
	return &brokenTxn{ctx: ctx, kv: k.KV, commit: k.commit}
}

// loseRecords drops the records from each write.
func loseRecords(c *clientv3.Client) {
	c.KV = brokenKV{c.KV, func(b *brokenTxn) (*clientv3.TxnResponse, error) {
		_, others := b.records()
		return b.send(others)
	}}
}

// recordLate removes ids from their claims in one transaction and records them in the
// next.
func recordLate(c *clientv3.Client) {
	c.KV = brokenKV{c.KV, func(b *brokenTxn) (*clientv3.TxnResponse, error) {
		records, others := b.records()
		resp, err := b.send(others)
		if err == nil && resp.Succeeded && len(records) > 0 {
			_, err = b.kv.Txn(b.ctx).Then(records...).Commit()
		}
		return resp, err
	}}
}

// copyWithoutCondition sends a copy of each write later, without its condition and without
// counting it. (A copy that is counted is noticed as the end of the session.)
func copyWithoutCondition(c *clientv3.Client) {
	c.KV = brokenKV{c.KV, func(b *brokenTxn) (*clientv3.TxnResponse, error) {
		time.AfterFunc(between(0, 300*time.Millisecond), func() {
			ctx, cancel := context.WithTimeout(context.Background(), ttl)
			defer cancel()
			b.kv.Txn(ctx).Then(b.then[1:]...).Commit() // the first operation counts the write
		})
		return b.send(b.then)
	}}
}

// ignoreClaims hides the claims of other sessions from the claimer's watch.
func ignoreClaims(c *clientv3.Client) {
	own := new(sync.Map)
	c.Lease, c.Watcher = notingLease{c.Lease, own}, blindWatcher{c.Watcher, own}
}

type notingLease struct {
	clientv3.Lease
	own *sync.Map
}

func (l notingLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	resp, err := l.Lease.Grant(ctx, ttl)
	if err == nil {
		l.own.Store(int64(resp.ID), true)
	}
	return resp, err
}

type blindWatcher struct {
	clientv3.Watcher
	own *sync.Map
}

func (w blindWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	seen := make(chan clientv3.WatchResponse)
	go func() {
		defer close(seen)
		for resp := range w.Watcher.Watch(ctx, key, opts...) {
			resp.Events = slices.DeleteFunc(resp.Events, func(e *clientv3.Event) bool {
				_, own := w.own.Load(e.Kv.Lease)
				return e.IsCreate() && !own && bytes.Contains(e.Kv.Key, []byte("/claim/"))
			})
			select {
			case seen <- resp:
			case <-ctx.Done():
			}
		}
	}()
	return seen
}
