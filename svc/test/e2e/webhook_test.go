package e2e

import (
	"net/http"
	"sync/atomic"
	"testing"
)

// A proxy accepts connections and closes them while its backend is down. That is an
// outage: no attempt is counted, no token changes and no event is dead-lettered,
// however long it lasts.
func TestWebhookConnectionLost(t *testing.T) {
	const events = 10
	b := newProxiedEnv(t)
	var down atomic.Bool
	down.Store(true)
	lost := make(chan struct{}, 1000)
	receiver := newReceiver(t, nil)
	up := receiver.Config.Handler
	receiver.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			lost <- struct{}{}
			panic(http.ErrAbortHandler) // closes the connection
		}
		up.ServeHTTP(w, r)
	})
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "MAX_ATTEMPTS=1")
	b.publishBodies(orders("lost", events)...)
	for range 3 * events {
		<-lost
	}
	down.Store(false)
	s.waitLogs(events, "msg=processed")
	s.stop()
	for _, p := range receiver.all() {
		if p.Attempt != 1 {
			t.Errorf("%s was posted as attempt %d", p.ID, p.Attempt)
		}
	}
	if lost, twice := receiver.accounts("lost", events); lost+twice > 0 {
		t.Errorf("%d events were lost, %d done under two tokens", lost, twice)
	}
	if n := s.log.count("the webhook is unavailable"); n != 1 {
		t.Errorf("the outage is logged %d times", n)
	}
	b.waitCounts(map[string]int64{"orders_new_order_ok": events, "orders_new_order_failed": 0})
}
