package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// An event whose attempts all fail is dead-lettered, and delays no other. That is not
// remembered: once the cause is fixed, the event can be published again.
func TestAttempts(t *testing.T) {
	e := newEnv(t)
	var fixed atomic.Bool
	receiver := newReceiver(t, func(p post) int {
		if p.ID == "bad0" && !fixed.Load() {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "MAX_ATTEMPTS=2")
	s.waitLog("msg=consuming")
	e.publishBodies(append(orders("bad", 1), orders("good", 50)...)...)
	s.waitLogs(50, "msg=processed", "id=good")
	s.waitLog("msg=dead-lettered", "id=bad0", "reason=failed")
	eventually(t, "a released claim", func() error { return e.allDone("orders", 50) })
	bad := order("bad0")
	if letter := e.wantStored(bad)[bad]; letter.Headers["x-attempts"] != int32(2) {
		t.Errorf("the dead letter is %v", letter)
	}
	fixed.Store(true)
	e.publishBodies(bad)
	s.waitLog("msg=processed", "id=bad0")
	e.waitCounts(map[string]int64{"orders_new_order_ok": 51, "orders_new_order_failed": 1})
	e.wantAllDone("orders", 51)
	s.stop()
	if n := len(receiver.all()); n != 53 {
		t.Errorf("%d posts, want 53", n)
	}
}

// With CONCURRENCY=1 events are handled in the order of their delivery.
func TestOrder(t *testing.T) {
	const ids = 200
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, func(p post) int {
		if strings.HasSuffix(p.ID, "7") && p.Attempt == 1 {
			return http.StatusInternalServerError // retried before the next event
		}
		return http.StatusOK
	})
	e.publishBodies(orders("n", ids)...)
	s := e.start("orders", "ENABLE_ETCD=true", "CONCURRENCY=1", "WEBHOOK_URL="+receiver.URL)
	e.waitCounts(map[string]int64{"orders_new_order_ok": ids})
	s.stop()
	next := 0
	for _, p := range receiver.all() {
		if want := fmt.Sprint("n", next); p.ID != want {
			t.Fatalf("%s was posted, want %s", p.ID, want)
		}
		if p.Status == http.StatusOK {
			next++
		}
	}
	e.wantAllDone("orders", ids)
}
