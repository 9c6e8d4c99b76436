package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
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
	message := plumber(order("odd"))
	message.Headers = amqp.Table{"odd": int16(7)}
	e.must(odd.Publish("events", "foo", false, false, message))
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
	work := receiver.Work("orders")
	for id, posts := range work {
		if posts[0] > 2 || strings.HasPrefix(id, "behind") {
			t.Errorf("%s was worked on %d times", id, posts[0])
		}
	}
	if len(work) != before {
		t.Errorf("%d of the %d events before the message were worked on", len(work), before)
	}
	s.wantLines(s.log.count("head of the queue"), "hint=")

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

// oddChannel returns a channel that can publish and read a header that the services' client
// library cannot read.
func (e *env) oddChannel() *amqp.Channel {
	e.t.Helper()
	uri, err := amqp.ParseURI(e.directAMQP)
	e.must(err)
	raw, err := net.Dial("tcp", net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
	e.must(err)
	conn, err := amqp.Open(swapConn{raw}, amqp.Config{SASL: []amqp.Authentication{uri.PlainAuth()}, Vhost: uri.Vhost})
	e.must(err)
	e.t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	e.must(err)
	return ch
}

// swapConn is a connection to the broker that swaps `u`, a type of headers that the client library
// does not know, and the library's `s`, which has the same size.
type swapConn struct{ net.Conn }

var known, unknown = []byte("\x03odds\x00\x07"), []byte("\x03oddu\x00\x07")

func (c swapConn) Write(b []byte) (int, error) {
	return c.Conn.Write(bytes.ReplaceAll(b, known, unknown))
}

func (c swapConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	copy(b, bytes.ReplaceAll(b[:n], unknown, known))
	return n, err
}
