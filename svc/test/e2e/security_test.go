package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/streadway/amqp"
)

// A publisher can neither fill the log nor forge lines in it.
func TestLogLinesAreBounded(t *testing.T) {
	t.Parallel()
	for format, begin := range map[string]string{"text": "time=", "json": `{"time":`} {
		t.Run(format, func(t *testing.T) {
			b := newProxiedEnv(t)
			receiver := newReceiver(t, func(post) int { return http.StatusBadRequest })
			s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "LOG_FORMAT="+format)
			long := strings.Repeat("x", 1<<20)
			forged := `\nlevel=ERROR msg=forged`
			b.publishBodies(
				fmt.Sprintf(`{"type":%q,"id":"1"}`, long), // ignored
				fmt.Sprintf(`{"type":"%s","id":"%s"}`, strings.Repeat(`\u0001`, 1<<17), strings.Repeat(`\u0001`, 512)),
				fmt.Sprintf(`{"type":"%s","id":"%s"}`, forged, forged),
				fmt.Sprintf(`{"type":"new_order","id":%q}`, long),
				fmt.Sprintf(`{"type":"new_order",%q:1}`, long),
				long,
				fmt.Sprintf(`{"type":"new_order","id":"%s"}`, strings.Repeat(`\u0001`, 512)),
				fmt.Sprintf(`{"type":"new_order","id":"%s"}`, forged),
			)
			s.waitLogs(3, "ignored")
			s.waitLogs(5, "dead-lettered")
			s.stop()
			for line := range strings.Lines(s.log.String()) {
				if len(line) > 10<<10 || !strings.HasPrefix(line, begin) {
					t.Errorf("a line is too long (%d bytes) or forged: %.300s…", len(line), line)
				}
			}
		})
	}
}

// AMQP has one frame for all headers of a message. If a publisher has filled it, the dead
// letter has the headers with the reason, and the number of those that it leaves out.
func TestDeadLetterOfHugeHeaders(t *testing.T) {
	b := newProxiedEnv(t)
	s := b.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	huge := plumber("not an event")
	huge.Headers = amqp.Table{"huge": strings.Repeat("h", 130_900), "trace": "t1"}
	// A publisher can send the headers of a dead letter itself, of any size.
	forged := plumber("forged")
	forged.Headers = amqp.Table{"x-failed-at": "f", "x-routing-key": "f", "x-exchange": strings.Repeat("f", 130_900)}
	b.publish(huge, forged)
	b.publishBodies(orders("behind", 3)...)
	s.waitLogs(3, "msg=processed")
	s.waitLogs(2, "msg=dead-lettered")
	s.stop()
	stored := b.wantStored("not an event", "forged")
	if got := stored["forged"].Headers; got["x-exchange"] != "events" || got["x-routing-key"] != "foo" {
		t.Errorf("the exchange is %.50q, the routing key is %q", got["x-exchange"], got["x-routing-key"])
	}
	letter := stored["not an event"]
	got := letter.Headers
	if got["huge"] != nil || got["trace"] != nil || got["x-reason"] != "malformed" || got["x-error"] == nil || got["x-dropped-headers"] != int32(2) ||
		letter.AppId != "plumber" {
		t.Errorf("the dead letter is %.1000v", letter)
	}
	if n := s.log.count("level=WARN"); n > 0 {
		t.Errorf("%d warnings", n)
	}
}
