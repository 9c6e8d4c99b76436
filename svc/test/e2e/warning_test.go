package e2e

import "testing"

// Attempts that together take longer than the broker waits are warned of at the start.
func TestWarningOfLongAttempts(t *testing.T) {
	e := newEnv(t)
	for timeout, want := range map[string]int{"400s": 0, "401s": 1} {
		s := e.start("orders", "MAX_ATTEMPTS=3", "HANDLER_TIMEOUT="+timeout)
		s.waitLog("msg=consuming")
		s.wantLines(want, "level=WARN", "MAX_ATTEMPTS", "consumer_timeout")
		s.stop()
	}
}
