package e2e

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// With LOG_FORMAT=json each line is an object of scalar values. Each line has the role,
// attribute names need no quoting, and durations are text.
func TestLogForMachines(t *testing.T) {
	b := newProxiedEnv(t)
	var unavailable atomic.Bool
	receiver := newReceiver(t, func(p post) int {
		switch {
		case p.ID == "bad0":
			return http.StatusBadRequest
		case unavailable.Load():
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	b.toEtcd.cut()
	b.toRabbit.cut()
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "LOG_FORMAT=json", "LOG_LEVEL=debug", "HEALTH_ADDR=127.0.0.1:0")
	s.waitLog("etcd is unreachable")
	b.toEtcd.reconnect()
	s.waitLog("not consuming")
	b.toRabbit.reconnect()
	b.publishBodies(append(append(orders("good", 1), orders("bad", 1)...), "malformed", `{"type":"other"}`)...)
	s.waitLogs(2, "dead-lettered")
	s.waitLog("ignored")
	unavailable.Store(true)
	b.publishBodies(orders("later", 1)...)
	s.waitLog("the webhook is unavailable")
	unavailable.Store(false)
	s.waitLog("processed", "later0")
	b.toRabbit.cut()
	s.waitLogs(2, "not consuming")
	b.toRabbit.reconnect()
	b.publishBodies(orders("good", 1)...)
	s.waitLog("skipped")
	s.stop()

	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	for line := range strings.Lines(s.log.String()) {
		var attrs map[string]any
		if err := json.Unmarshal([]byte(line), &attrs); err != nil {
			t.Errorf("%v: %s", err, line)
			continue
		}
		if attrs["service"] != "orders" {
			t.Errorf("the service is missing in %s", line)
		}
		for key, value := range attrs {
			if !name.MatchString(key) {
				t.Errorf("the name %q needs quoting in %s", key, line)
			}
			switch value.(type) {
			case string, float64, bool:
			default:
				t.Errorf("%s is not a scalar in %s", key, line)
			}
		}
		for _, key := range []string{"took", "after", "ttl"} {
			if value, ok := attrs[key]; ok {
				text, _ := value.(string)
				if _, err := time.ParseDuration(text); err != nil {
					t.Errorf("%s is not a duration as text in %s", key, line)
				}
			}
		}
	}
	for _, msg := range []string{"starting", "cache warmed", "consuming", "processed", "skipped", "ignored", "dead-lettered", "stopped"} {
		if s.log.count(`"msg":"`+msg+`"`) == 0 {
			t.Errorf("there is no line %q", msg)
		}
	}
}
