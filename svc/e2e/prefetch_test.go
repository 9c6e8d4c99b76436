package e2e

import "testing"

// No more deliveries are held than the handlers finish before the broker's
// consumer_timeout, however slow they are within HANDLER_TIMEOUT.
func TestHeldDeliveries(t *testing.T) {
	const events = 1100
	tests := map[string]struct {
		vars []string
		held int
		says string // nothing: PREFETCH is held
	}{
		"as configured":           {nil, 1000, ""},
		"one handler":             {[]string{"CONCURRENCY=1"}, 13, "held=13 prefetch=1000"}, // of 3 attempts of 30 s each
		"slow handlers":           {[]string{"HANDLER_TIMEOUT=10m"}, 64, "held=64 prefetch=1000"},
		"slower than the timeout": {[]string{"CONCURRENCY=1", "HANDLER_TIMEOUT=1h"}, 1, "held=1 prefetch=1000"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := newBroker(t)
			e.publishBodies(orders("h", events)...)
			receiver, began := newHang(t)
			s := e.start("orders", append(tt.vars, "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT="+shutdown.String())...)
			<-began
			e.waitDepth("orders-queue", events-tt.held)
			if n := s.log.count("fewer deliveries than PREFETCH are held", tt.says, "hint="); (n == 1) != (tt.says != "") {
				t.Errorf("the log says so %d times:\n%s", n, s.log.tail(10))
			}
			s.stop()
		})
	}
}
