package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streadway/amqp"
)

// legalIDs returns legal ids that contain special characters or words.
func legalIDs() []string {
	return []string{
		"a", "A", " ", "\ta ", "/", "//", "../../etc", "/service/orders/00/x", "..", "%", "%2F", "%zz", "?a=b&c#d", "*",
		"line\nbreak", "return\r\nX-Attempt: 9", "\x00", "\x7f", `"quoted"`, `back\slash`,
		"注文", "🧾", "e\u0301", "\u00e9", "\ufeff", "\ufffd", "\u2028", "\U0010ffff", "null", "0",
		strings.Repeat("x", 512), strings.Repeat("\u00e9", 256),
	}
}

// badBodies are not events. (The tests of package event list all defects.)
var badBodies = map[string]string{
	"empty":             "",
	"not JSON":          "hello",
	"NUL bytes":         strings.Repeat("\x00", 64),
	"no id":             `{"type":"new_order"}`,
	"two ids":           `{"type":"new_order","id":"1","id":"2"}`,
	"invalid UTF-8":     "{\"type\":\"new_order\",\"id\":\"\xff\"}",
	"200,000 open":      strings.Repeat("[", 200_000),
	"8 MiB of an event": `{"type":"new_order","id":"1","pad":"` + strings.Repeat("x", 8<<20),
}

// Every body is processed, or dead-lettered unchanged. No body crashes the service or
// delays another.
func TestBadInput(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, nil)
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL)
	s.waitLog("msg=consuming")

	var bodies []string
	var good int
	for _, body := range badBodies {
		// The good event behind each bad body must be processed.
		bodies = append(bodies, body, fmt.Sprintf(`{"type":"new_order","id":"good%d"}`, good))
		good++
	}
	big := `{"type":"new_order","id":"big","pad":"` + strings.Repeat("x", 8<<20) + `"}`
	legal := map[string]string{
		"big":    big,
		"spaces": "\r\n\t {\"id\" : \"spaces\" ,\"type\":\"new_order\"} \n",
		"é":      `{"type":"new_\u006frder","id":"\u00e9","more":[1e400,{"id":"other"}]}`, // one of legalIDs, escaped
	}
	for _, body := range legal {
		bodies = append(bodies, body)
	}
	e.publishBodies(bodies...)
	e.publishBodies(`{"type":"new_order","id":"last"}`)
	published := time.Now()
	s.waitLog("msg=processed", "id=last")
	took := time.Since(published)
	if took > 5*time.Second {
		t.Errorf("a good event was processed after %v", took)
	}
	processed := good + len(legal) + 1
	e.waitCounts(map[string]int64{"orders_malformed": int64(len(badBodies)), "orders_new_order_ok": int64(processed), "orders_ignored": 0})
	e.wantAllDone("orders", processed)
	if n := len(receiver.all()); n != processed {
		t.Errorf("%d posts, want %d", n, processed)
	}
	for _, p := range receiver.all() {
		if want, ok := legal[unescape(t, p.ID)]; ok && p.Body != want {
			t.Errorf("the body of %s was posted as %.80q", p.ID, p.Body)
		}
	}
	t.Logf("%d bad bodies, the last good event was processed after %v", len(badBodies), took.Round(time.Millisecond))
	s.stop()

	letters := make(map[string]amqp.Delivery)
	for _, l := range e.deadLetters("orders") {
		if _, twice := letters[string(l.Body)]; twice {
			t.Errorf("dead-lettered twice: %.80q", l.Body)
		}
		letters[string(l.Body)] = l
	}
	for name, body := range badBodies {
		l, ok := letters[body]
		if !ok {
			t.Errorf("%s: not dead-lettered unchanged", name)
			continue
		}
		if text, _ := l.Headers["x-error"].(string); l.Headers["x-reason"] != "malformed" || text == "" || l.AppId != "plumber" {
			t.Errorf("%s: %v, %q", name, l.Headers, l.AppId)
		}
		delete(letters, body)
	}
	for body := range letters {
		t.Errorf("dead-lettered, but not bad: %.80q", body)
	}
	if n := e.depth("orders-queue"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// A dead letter keeps all properties and headers of its message, but those that would make
// the broker refuse, copy or drop it: these are kept as headers.
func TestDeadLetterKeepsHeaders(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	at := time.Unix(1_700_000_000, 0)
	headers := amqp.Table{
		"string": "s", "empty": "", "long": strings.Repeat("é", 5000), "invalid": "\xff",
		"true": true, "false": false, "nil": nil,
		"byte": byte(200), "int16": int16(-2), "int32": int32(-3), "int64": int64(-1 << 60),
		"float32": float32(1.5), "float64": 1e300, "decimal": amqp.Decimal{Scale: 2, Value: 12345},
		"time": at, "bytes": []byte{0, 1, 0xff}, "no bytes": []byte{},
		"array": []any{"a", int32(1), nil, []any{true, []any{}}, amqp.Table{"k": []any{int64(1)}}}, "empty array": []any{},
		"table": amqp.Table{"a": amqp.Table{"b": amqp.Table{"c": at}}, "d": nil, "e": []byte("x")}, "empty table": amqp.Table{},
		"": "a name of no bytes", strings.Repeat("n", 255): "a long name", "x-death": []any{amqp.Table{"count": int64(1), "reason": "expired"}},
	}
	sent := amqp.Publishing{
		Body: []byte("everything"), Headers: maps.Clone(headers), ContentType: "text/plain", ContentEncoding: "none", DeliveryMode: amqp.Transient,
		Priority: 7, CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: at, Type: "t", AppId: "a", UserId: "guest", Expiration: "600000",
	}
	sent.Headers["CC"] = []any{"elsewhere"}
	e.publish(sent, amqp.Publishing{Body: []byte("nothing")})
	s.waitLogs(2, "msg=dead-lettered")
	s.stop()

	stored := e.wantStored("everything", "nothing")
	for body, want := range map[string]amqp.Table{"everything": headers, "nothing": {}} {
		got := stored[body].Headers
		for _, name := range []string{"x-reason", "x-error", "x-attempts", "x-exchange", "x-routing-key", "x-failed-at"} {
			if got[name] == nil {
				t.Errorf("%q: no %s", body, name)
			}
			delete(got, name)
		}
		if body == "everything" {
			want["x-original-user_id"], want["x-original-expiration"], want["x-original-CC"] = "guest", "600000", []any{"elsewhere"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", body, diff)
		}
	}
	got := stored["everything"]
	if diff := cmp.Diff(sent, amqp.Publishing{
		Body: got.Body, Headers: sent.Headers, ContentType: got.ContentType, ContentEncoding: got.ContentEncoding, DeliveryMode: amqp.Transient,
		Priority: got.Priority, CorrelationId: got.CorrelationId, ReplyTo: got.ReplyTo, MessageId: got.MessageId, Timestamp: got.Timestamp,
		Type: got.Type, AppId: got.AppId, UserId: "guest", Expiration: "600000",
	}); diff != "" || got.UserId+got.Expiration != "" || got.DeliveryMode != amqp.Persistent {
		t.Errorf("properties (-want +got):\n%s%+v", diff, got)
	}
}

// swapConn is a connection to the broker that can write and read a header whose type
// the client library does not know. It swaps the unknown type `u` and the library's
// `s`, which have the same size.
type swapConn struct{ net.Conn }

var (
	known, unknown = []byte("\x03odds\x00\x07"), []byte("\x03oddu\x00\x07")
)

func (c swapConn) Write(b []byte) (int, error) {
	return c.Conn.Write(bytes.ReplaceAll(b, known, unknown))
}

func (c swapConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	copy(b, bytes.ReplaceAll(b[:n], unknown, known))
	return n, err
}
