package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A message that the client library cannot read ends the connection and thereby the
// deliveries before it. No earlier event is worked on more than twice. The service then
// takes one message at a time to find the unreadable one, and logs it. Once it is
// removed, the others are processed.
func TestUnreadableBehindOthers(t *testing.T) {
	const before, behind = 50, 20
	e, _ := newBroker(t)
	relay := newRelay(e, 0)
	odd := e.oddChannel()
	e.publishBodies(orders("before", before)...)
	e.must(odd.Publish("events", "foo", false, false, oddMessage("odd")))
	e.waitDepth("orders-queue", before+1)
	e.publishBodies(orders("behind", behind)...)

	receiver := newReceiver(t, func(post) int { <-time.After(300 * time.Millisecond); return http.StatusOK })
	s := e.start("orders", "WEBHOOK_URL="+receiver.URL)
	s.waitLog("not consuming", "one of the first 64 messages", "taken one at a time")
	s.waitLog("not consuming", "head of the queue cannot be read", "hint=", "remove it")
	if n := relay.accepted.Load(); n > 3 {
		t.Errorf("%d connections until the message is found, want 2, or 3 with the next attempt", n)
	}
	connections, cpu := relay.accepted.Load(), s.cpu()
	<-time.After(5 * time.Second)
	if n, used := relay.accepted.Load()-connections, s.cpu()-cpu; n < 2 || n > 6 || used > time.Second/2 {
		t.Errorf("%d attempts in 5 s, want 2 to 6; they took %v of processor time", n, used)
	}
	posts := make(map[string]int)
	for _, p := range receiver.all() {
		posts[p.ID]++
	}
	for id, n := range posts {
		if n > 2 || strings.HasPrefix(id, "behind") {
			t.Errorf("%s was worked on %d times", id, n)
		}
	}
	if len(posts) != before {
		t.Errorf("%d of the %d events before the message were worked on", len(posts), before)
	}
	if n := s.log.count("hint=") - s.log.count("head of the queue"); n != 0 {
		t.Errorf("%d hints concern something else", n)
	}

	eventually(t, "the message between two tries", func() error {
		d, ok, err := odd.Get("orders-queue", false)
		e.must(err)
		if !ok {
			return errNotYet
		}
		if !strings.Contains(string(d.Body), `"odd"`) {
			t.Fatalf("the head of the queue is %s", d.Body)
		}
		return d.Ack(false)
	})
	for i := range behind {
		s.waitLog("msg=processed", fmt.Sprintf("id=behind%d", i))
	}
	e.waitDepth("orders-queue", 0)
	s.stop()
}
