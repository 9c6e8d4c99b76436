package e2e

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The receiver answers 503 to the events of one tenant of many. Those of the others pass by
// them, the receiver is spared, and nothing is lost, done twice or dead-lettered.
func TestOneTenantIsDown(t *testing.T) {
	const down, up = 1100, 100
	b := newEnv(t)
	var repaired atomic.Bool
	receiver := newReceiver(t, func(p post) int {
		if strings.HasPrefix(p.ID, "down") && !repaired.Load() {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "HEALTH_ADDR=127.0.0.1:0", "LOG_LEVEL=debug")
	s.waitLog("msg=consuming")
	began := time.Now()
	b.publishBodies(orders("down", down)...)
	s.waitReady("webhook") // nothing passes
	b.publishBodies(orders("up", up)...)
	s.waitLogs(up, "msg=processed", "id=up")
	took := time.Since(began)
	s.waitReady()
	if rate := float64(len(receiver.all())-up) / took.Seconds(); rate > 75 {
		t.Errorf("%.0f refused posts a second for %v, want about 50", rate, took)
	}
	if n := s.log.count("the webhook is unavailable", "id=down"); n != 1 {
		t.Errorf("the outage is logged %d times", n)
	}
	repaired.Store(true)
	s.waitLogs(down, "msg=processed", "id=down")
	s.waitLog("the webhook is available again")
	s.stop()
	t.Logf("%d events passed %d refused ones within %v; all were done after %v", up, down, took, time.Since(began))
	for prefix, n := range map[string]int{"down": down, "up": up} {
		if lost, twice := receiver.accounts(prefix, n); lost+twice > 0 {
			t.Errorf("%s: %d events were lost, %d done under two tokens", prefix, lost, twice)
		}
	}
	b.waitCounts(map[string]int64{"orders_new_order_ok": down + up, "orders_new_order_failed": 0})
	if n := b.depth("orders-queue"); n > 0 {
		t.Errorf("%d events are left in the queue", n)
	}
}
