package e2e

import (
	"fmt"
	"maps"
	"slices"
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

// Texts that would fill the log, or forge lines in it.
var (
	long     = strings.Repeat("x", 1<<20)
	controls = strings.Repeat("\x01", 512)
	forged   = "\nlevel=ERROR msg=forged"
)

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
	"a long text":       long,
	"a long id":         `{"type":"new_order","id":"` + long + `"}`,
	"a long name":       `{"type":"new_order","` + long + `":1}`,
}

// ignoredBodies are events of types without a handler.
var ignoredBodies = []string{
	`{"type":"order_shipped"}`,
	`{"type":"` + long + `","id":"1"}`,
	fmt.Sprintf(`{"type":%s,"id":%s}`, quoteJSON(strings.Repeat(controls, 256)), quoteJSON(controls)),
	fmt.Sprintf(`{"type":%s,"id":%[1]s}`, quoteJSON(forged)),
}

// order returns the body of a new_order event with an id that may need quotes.
func order(id string) string { return fmt.Sprintf(`{"type":"new_order","id":%s}`, quoteJSON(id)) }

// wantBounded checks that each line of the log is of the service, and not too long.
func (s *service) wantBounded(begin string) {
	s.t.Helper()
	for line := range strings.Lines(s.log.String()) {
		if len(line) > 10<<10 || !strings.HasPrefix(line, begin) {
			s.t.Errorf("a line is too long (%d bytes) or forged: %.300s…", len(line), line)
		}
	}
}

// Every body is processed, ignored, or dead-lettered unchanged. No body crashes the service,
// delays another, or fills the log.
func TestBadInput(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, nil)
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL)
	s.waitLog("msg=consuming")

	bodies, good := slices.Clone(ignoredBodies), 0
	for _, body := range badBodies {
		// The good event behind each bad body must be processed.
		bodies = append(bodies, body, fmt.Sprintf(`{"type":"new_order","id":"good%d"}`, good))
		good++
	}
	legal := map[string]string{
		"big":    `{"type":"new_order","id":"big","pad":"` + strings.Repeat("x", 8<<20) + `"}`,
		"spaces": "\r\n\t {\"id\" : \"spaces\" ,\"type\":\"new_order\"} \n",
		"é":      `{"type":"new_\u006frder","id":"\u00e9","more":[1e400,{"id":"other"}]}`, // one of legalIDs, escaped
		controls: order(controls),
		forged:   order(forged),
	}
	bodies = slices.AppendSeq(bodies, maps.Values(legal))
	e.publishBodies(bodies...)
	e.publishBodies(`{"type":"new_order","id":"last"}`)
	published := time.Now()
	s.waitLog("msg=processed", "id=last")
	took := time.Since(published)
	if took > 5*time.Second {
		t.Errorf("a good event was processed after %v", took)
	}
	processed := good + len(legal) + 1
	e.waitCounts(map[string]int64{"orders_malformed": int64(len(badBodies)), "orders_new_order_ok": int64(processed), "orders_ignored": int64(len(ignoredBodies))})
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
	s.wantBounded("time=")
	for body, l := range e.wantStored(slices.Collect(maps.Values(badBodies))...) {
		if text, _ := l.Headers["x-error"].(string); l.Headers["x-reason"] != "malformed" || text == "" || l.AppId != "plumber" {
			t.Errorf("%.80q: %v, %q", body, l.Headers, l.AppId)
		}
	}
	e.waitDepth("orders-queue", 0)
}

// A dead letter keeps all properties and headers of its message, but those that would make
// the broker refuse, copy or drop it: these are kept as headers. (More in package rabbit.) AMQP
// has one frame for all headers of a message. If a publisher has filled it, the dead letter has
// the headers with the reason, and the number of those that it leaves out.
func TestDeadLetterKeepsHeaders(t *testing.T) {
	e, _ := newBroker(t)
	s := e.start("orders")
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
		Priority: 7, CorrelationId: "c", ReplyTo: "amq.rabbitmq.reply-to", MessageId: "m", Timestamp: at, Type: "t", AppId: "a", UserId: "guest", Expiration: "600000",
	}
	sent.Headers["CC"] = []any{"elsewhere"}
	e.channel(func(ch *amqp.Channel) error {
		if _, err := ch.Consume(sent.ReplyTo, "", true, false, false, false, nil); err != nil { // required for direct replies
			return err
		}
		return ch.Publish("events", "foo", false, false, sent)
	})
	full := plumber("full")
	full.Headers = amqp.Table{"huge": strings.Repeat("h", 130_900), "trace": "t1"}
	e.publish(full)
	s.waitLogs(2, "msg=dead-lettered")
	s.stop()
	s.wantLines(0, "level=WARN")

	stored := e.wantStored("everything", "full")
	if got := stored["full"].Headers; got["huge"] != nil || got["trace"] != nil || got["x-reason"] != "malformed" || got["x-error"] == nil ||
		got["x-dropped-headers"] != int32(2) || stored["full"].AppId != "plumber" {
		t.Errorf("the dead letter is %.1000v", stored["full"])
	}
	got := stored["everything"]
	want := sent
	want.Headers, want.DeliveryMode, want.UserId, want.Expiration = headers, amqp.Persistent, "", ""
	want.ReplyTo = got.ReplyTo // the address that the broker has put there
	maps.Copy(headers, amqp.Table{
		"x-reason": "malformed", "x-attempts": int32(0), "x-exchange": "events", "x-routing-key": "foo",
		"x-error": got.Headers["x-error"], "x-failed-at": got.Headers["x-failed-at"],
		"x-original-user_id": "guest", "x-original-expiration": "600000", "x-original-CC": []any{"elsewhere"},
	})
	if diff := cmp.Diff(want, amqp.Publishing{
		Body: got.Body, Headers: got.Headers, ContentType: got.ContentType, ContentEncoding: got.ContentEncoding, DeliveryMode: got.DeliveryMode,
		Priority: got.Priority, CorrelationId: got.CorrelationId, ReplyTo: got.ReplyTo, MessageId: got.MessageId, Timestamp: got.Timestamp,
		Type: got.Type, AppId: got.AppId, UserId: got.UserId, Expiration: got.Expiration,
	}); diff != "" || headers["x-error"] == nil || headers["x-failed-at"] == nil || !strings.HasPrefix(got.ReplyTo, "amq.rabbitmq.reply-to.") {
		t.Errorf("the dead letter (-want +got):\n%s%+v", diff, got)
	}
}
