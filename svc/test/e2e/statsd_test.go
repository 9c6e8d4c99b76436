package e2e

import (
	"fmt"
	"testing"
	"time"
)

// A statsd that starts, or restarts, after the service gets every counter within 10 s,
// without an event. Without a statsd the work goes on.
func TestStatsdStartsLater(t *testing.T) {
	e, _ := newBroker(t)
	addr := e.statsd.Addr()
	e.statsd.Close()
	s := e.start("orders")
	s.waitLog("msg=consuming")
	for round := range 2 {
		e.publishBodies(orders(fmt.Sprint("without", round, "-"), 50)...)
		s.waitLogs(50, "msg=processed", fmt.Sprint("id=without", round, "-"))
		began := time.Now()
		e.listen(addr)
		for _, name := range []string{"new_order_ok", "new_order_skipped", "new_order_failed", "malformed", "ignored"} {
			e.waitPrimed("orders_" + name)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("statsd has the counters only after %v", took)
		}
		e.statsd.Close()
	}
	s.stop()
	if n := s.log.count("level=WARN") + s.log.count("level=ERROR"); n > 0 {
		t.Errorf("%d warnings:\n%s", n, s.log.tail(20))
	}
}
