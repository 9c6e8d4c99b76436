package e2e

import (
	"net/http"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A replica that is cut off from etcd loses its claim without noticing. The receiver,
// which has seen the newer token of another replica, refuses the old token. The replica
// then finds out that it has lost the claim, and skips the event instead of
// dead-lettering it.
func TestWebhookRefusesAnOlderToken(t *testing.T) {
	b := newProxiedEnv(t)
	var mu sync.Mutex
	var first, newest int64 // tokens; the first is that of the replica that is cut off
	receiver := newReceiver(t, func(p post) int {
		mu.Lock()
		defer mu.Unlock()
		if first == 0 {
			first = p.Token
		}
		newest = max(newest, p.Token)
		switch {
		case p.Token < newest:
			return http.StatusPreconditionFailed
		case p.Token == first:
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

	b.toEtcd.cut()
	for _, c := range b.keys("orders").claims {
		if c.CreateRevision == first {
			_, err := b.etcd.Revoke(t.Context(), clientv3.LeaseID(c.Lease))
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
	b.wantStored()
}
