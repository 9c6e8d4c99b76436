package e2e

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// fencing refuses a post with an older token than one that it has seen for the same id.
type fencing struct {
	mu     sync.Mutex
	newest map[string]int64
}

func (f *fencing) refuses(p post) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.newest == nil {
		f.newest = make(map[string]int64)
	}
	f.newest[p.ID] = max(f.newest[p.ID], p.Token)
	return p.Token < f.newest[p.ID]
}

// A replica that is cut off from etcd loses its claim without noticing. The receiver,
// which has seen the newer token of another replica, refuses the old token. The replica
// then finds out that it has lost the claim, and skips the event instead of
// dead-lettering it.
func TestWebhookRefusesAnOlderToken(t *testing.T) {
	b := newProxiedEnv(t)
	var seen fencing
	var first atomic.Int64 // the token of the replica that is cut off
	receiver := newReceiver(t, func(p post) int {
		first.CompareAndSwap(0, p.Token)
		switch {
		case seen.refuses(p):
			return http.StatusPreconditionFailed
		case p.Token == first.Load():
			return http.StatusServiceUnavailable // so that the event is posted again
		}
		return http.StatusOK
	})
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, "CLAIM_TTL=60s", "PREFETCH=1", "CONCURRENCY=1", "HANDLER_TIMEOUT=10s"}
	cutOff := b.start("orders", vars...)
	cutOff.waitLog("msg=consuming")
	b.publishBodies(orders("f", 1)...)
	receiver.wait(t, "the first post", func(posts []post) bool { return len(posts) > 0 })
	other := b.start("orders", append(vars, "ETCD_ENDPOINTS="+b.etcdServer.Endpoint())...)
	other.waitLog("msg=consuming")
	b.publishBodies(orders("f", 1)...) // goes to the other replica: the first one's prefetch is full

	sessions := b.sessions("orders")
	b.toEtcd.cut()
	for key, lease := range sessions {
		if claims, err := b.etcd.Get(t.Context(), "/service/orders/claim/"+key, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		} else if claims.Count > 0 && claims.Kvs[0].CreateRevision == first.Load() {
			_, err := b.etcd.Revoke(t.Context(), lease)
			b.must(err)
		}
	}
	other.waitLog("msg=processed", "id=f0")
	receiver.wait(t, "a refusal", func(posts []post) bool { return posts[len(posts)-1].Status == http.StatusPreconditionFailed })
	b.toEtcd.reconnect()
	cutOff.waitLog("msg=skipped", "id=f0")
	cutOff.stop()
	other.stop()
	b.waitCounts(map[string]int64{"orders_new_order_ok": 1, "orders_new_order_skipped": 1, "orders_new_order_failed": 0})
	if letters := b.deadLetters("orders"); len(letters) > 0 {
		t.Errorf("dead-lettered: %v", letters)
	}
}

// sessions returns the leases of a role's sessions by name.
func (e *env) sessions(role string) map[string]clientv3.LeaseID {
	e.t.Helper()
	prefix := "/service/" + role + "/session/"
	resp, err := e.etcd.Get(e.t.Context(), prefix, clientv3.WithPrefix())
	e.must(err)
	sessions := make(map[string]clientv3.LeaseID)
	for _, kv := range resp.Kvs {
		sessions[string(kv.Key[len(prefix):])] = clientv3.LeaseID(kv.Lease)
	}
	return sessions
}
