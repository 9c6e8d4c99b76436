package lookup

import (
	"context"
	"encoding/json"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Forget forgets those of the ids that are done, so that they are processed again when they are
// published or redelivered again. It returns what is known of the ids, in their order: Forgotten,
// Claimed or Unknown. The replicas see it at once, and those that cannot reach etcd when they can.
func (r Role) Forget(ctx context.Context, ids ...string) ([]Answer, error) {
	answers := make(map[string]Answer)
	for pending := ids; len(pending) > 0; {
		m, err := r.read(ctx, pending)
		if err != nil {
			return nil, err
		}
		byRecord := make(map[record][]string)
		for _, id := range pending {
			answers[id] = m.answer(id)
			for _, counts := range m.counting(id) {
				byRecord[counts] = append(byRecord[counts], id)
			}
		}
		pending = nil
		for counts, ids := range byRecord {
			forgotten, err := r.forget(ctx, counts, m.forgets[string(counts)], ids)
			if err != nil {
				return nil, err
			}
			if !forgotten {
				pending = append(pending, ids...)
				continue
			}
			for _, id := range ids {
				a := answers[id]
				a.State = Forgotten
				answers[id] = a
			}
		}
	}
	inOrder := make([]Answer, len(ids))
	for i, id := range ids {
		inOrder[i] = answers[id]
	}
	return inOrder, nil
}

// forget forgets ids of a record, besides those that were forgotten before. It reports false if
// that has changed meanwhile: another operator forgets ids of the record, or its window has ended.
func (r Role) forget(ctx context.Context, of record, before forget, ids []string) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.Timeout, ErrNoAnswer)
	defer cancel()
	key := r.Prefix + "forget/" + string(of)
	value, err := json.Marshal(append(before.ids, ids...))
	if err != nil {
		return false, err
	}
	put := clientv3.OpPut(key, string(value), clientv3.WithLease(of.lease()))
	resp, err := r.Client.Txn(ctx, clientv3.Compare(clientv3.ModRevision(key), "=", before.modified), []clientv3.Op{put}, clientv3.OpGet(key))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, nil
	}
	if err != nil || resp.Succeeded {
		return err == nil, err
	}
	// An earlier copy of the call may have been carried out.
	kvs := resp.Responses[0].GetResponseRange().Kvs
	return len(kvs) == 1 && string(kvs[0].Value) == string(value), nil
}
