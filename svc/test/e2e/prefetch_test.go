package e2e

import "testing"

// The service holds only as many deliveries as its handlers are sure to finish before the
// broker's consumer_timeout, even if each attempt takes the whole HANDLER_TIMEOUT.
func TestHeldDeliveries(t *testing.T) {
	t.Parallel()
	const events = 1100
	tests := map[string]struct {
		vars []string
		held int
		says string // part of the warning; empty: none, PREFETCH deliveries are held
	}{
		"as configured":           {nil, 1000, ""},
		"one handler":             {[]string{"CONCURRENCY=1"}, 13, "held=13 prefetch=1000"}, // 3 attempts of 30 s each
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
				t.Errorf("the log warns %d times of a smaller prefetch:\n%s", n, s.log.tail(10))
			}
			s.stop()
		})
	}
}
