package claim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// write sends the writes of the session, one at a time, until the session is over.
func (s *Etcd) write(ctx context.Context, ses *session) error {
	// A new window may have ended as well before the write arrives, if etcd is slow and
	// DEDUP_WINDOW short. So each further one lives longer, by extra.
	extra := time.Duration(0)
	quiet := time.NewTimer(maxLag)
	defer quiet.Stop()
	for {
		select {
		case <-s.wake:
		case <-quiet.C: // the view may be silent: a write that it does not show tells
			s.probe()
			quiet.Reset(maxLag)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// Let other goroutines join this write, as long as some do.
		for before, now := -1, s.backlog(); now > before; now = s.backlog() {
			before = now
			runtime.Gosched()
		}
		if s.needsWindow() {
			if err := s.openWindow(ctx, extra); err != nil {
				return err
			}
		}
		w := s.compose()
		if w == nil {
			continue
		}
		quiet.Reset(maxLag)
		switch err := s.commit(ctx, ses, w); {
		case err == nil:
			extra = 0
		case errors.Is(err, rpctypes.ErrLeaseNotFound) && w.Window.Lease != 0 && len(w.Done) > 0 && s.undo(w):
			// The session lives, so it is the window that has ended. etcd compares before it
			// checks leases: no copy of this write was carried out.
			extra = min(2*extra+time.Second, maxSpan)
		default:
			return fmt.Errorf("write %d: %w", w.N, err)
		}
	}
}

// commit sends a write until its outcome is known. A crash here: if the write was
// committed, its claims expire after CLAIM_TTL, and its records stay.
func (s *Etcd) commit(ctx context.Context, ses *session, w *write) error {
	resp, err := s.send(ctx, ses, w)
	if err != nil {
		return err
	}
	revision := resp.Header.Revision
	if !resp.Succeeded {
		kvs := resp.Responses[0].GetResponseRange().Kvs // the session's key
		if len(kvs) == 0 {
			return errors.New("the session's key is gone")
		}
		if kvs[0].Version != w.N {
			return fmt.Errorf("the session's key has version %d", kvs[0].Version)
		}
		revision = kvs[0].ModRevision // an earlier copy was committed
	}
	s.committedAt(w, revision)
	return nil
}

// send sends a write, again and again until it is answered.
func (s *Etcd) send(ctx context.Context, ses *session, w *write) (*clientv3.TxnResponse, error) {
	key := s.prefix + "session/" + w.Session
	underSession := clientv3.WithLease(ses.lease)
	ops := []clientv3.Op{clientv3.OpPut(key, s.value, underSession)}
	if len(w.Done) > 0 {
		underWindow := clientv3.WithLease(clientv3.LeaseID(w.Window.Lease))
		if w.NewWindow {
			ops = append(ops, clientv3.OpPut(s.prefix+"window/"+w.Window.Name, s.o.Window.String(), underWindow))
		}
		ops = append(ops, clientv3.OpPut(s.recordPath(w), listJSON(w.Done), underWindow))
	}
	for _, left := range w.Left {
		if len(left.IDs) == 0 {
			ops = append(ops, clientv3.OpDelete(s.claimPath(w, left.N)))
		} else {
			ops = append(ops, clientv3.OpPut(s.claimPath(w, left.N), listJSON(left.IDs), underSession))
		}
	}
	if len(w.Claim) > 0 {
		ops = append(ops, clientv3.OpPut(s.claimPath(w, w.N), listJSON(w.Claim), underSession))
	}
	return s.client.Txn(ctx, clientv3.Compare(clientv3.Version(key), "=", w.N-1), ops, clientv3.OpGet(key))
}

func (s *Etcd) claimPath(w *write, n int64) string {
	return fmt.Sprintf("%sclaim/%s/%016d", s.prefix, w.Session, n)
}

func (s *Etcd) recordPath(w *write) string {
	return fmt.Sprintf("%sdone/%s/%s/%016d", s.prefix, w.Window.Name, w.Session, w.Record)
}

// listJSON encodes ids as a JSON array, without HTML's escapes.
func listJSON(ids []string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(ids) // strings are never refused
	return string(bytes.TrimRight(b.Bytes(), "\n"))
}
