package e2e

import (
	"fmt"
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
	receiver := newReceiver(t, nil)
	receiver.Config.Handler = losing(receiver.Config.Handler, &down)
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "MAX_ATTEMPTS=1", "LOG_LEVEL=debug")
	b.publishBodies(orders("lost", events)...)
	for i := range events {
		s.waitLogs(10, "attempt failed", fmt.Sprintf("id=lost%d ", i))
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
	if n := s.log.count("the webhook is unreachable"); n != 1 {
		t.Errorf("the outage is logged %d times", n)
	}
	b.waitCounts(map[string]int64{"orders_new_order_ok": events, "orders_new_order_failed": 0})
}

// losing returns a handler that closes its connections without an answer while down is
// true, and otherwise calls up.
func losing(up http.Handler, down *atomic.Bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			panic(http.ErrAbortHandler)
		}
		up.ServeHTTP(w, r)
	})
}
