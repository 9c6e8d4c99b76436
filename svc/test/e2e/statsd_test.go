package e2e

import (
	"fmt"
	"testing"
	"time"
)

// A statsd that starts, or restarts, after the service gets every counter within 10 s,
// without an event.
func TestStatsdStartsLater(t *testing.T) {
	e, _ := newBroker(t)
	addr := e.statsd.Addr()
	e.statsd.Close()
	s := e.start("orders")
	s.waitLog("msg=consuming")
	for range 2 {
		began := time.Now()
		e.listen(addr)
		for _, name := range []string{"new_order_ok", "new_order_skipped", "new_order_failed", "malformed", "ignored"} {
			e.waitPrimed("orders_" + name)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("statsd has the counters only after %v", took)
		}
		if got, want := fmt.Sprint(e.statsd.Counts()), "map[orders_ignored:0 orders_malformed:0 orders_new_order_failed:0 orders_new_order_ok:0 orders_new_order_skipped:0]"; got != want {
			t.Errorf("statsd has %s, want %s", got, want)
		}
		e.statsd.Close()
	}
	s.stop()
}
