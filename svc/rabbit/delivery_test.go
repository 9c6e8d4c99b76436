package rabbit

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

var (
	boom     = consume.Failure{Reason: consume.ReasonFailed, Err: errors.New("boom"), Attempts: 3}
	failedAt = time.Date(2021, 12, 8, 10, 30, 0, 123456789, time.FixedZone("", -6*60*60))
)

// added returns the headers that every dead letter of boom has, together with more.
func added(more amqp.Table) amqp.Table {
	headers := amqp.Table{
		"x-reason": "failed", "x-error": "boom", "x-attempts": int32(3),
		"x-exchange": "", "x-routing-key": "", "x-failed-at": "2021-12-08T16:30:00.123456789Z",
	}
	maps.Copy(headers, more)
	return headers
}

// A publisher can send the header of a quorum queue. The queue's own is there, with its own
// type, only after a return.
func TestReturns(t *testing.T) {
	for name, tt := range map[string]struct {
		redelivered bool
		header      any
		want        int
	}{
		"returned":              {true, int64(7), 7},
		"to a classic queue":    {true, nil, 0},
		"of a publisher":        {false, int64(20), 0},
		"of an unexpected type": {true, "20", 0},
	} {
		d := &Delivery{msg: amqp.Delivery{Redelivered: tt.redelivered, Headers: amqp.Table{"x-delivery-count": tt.header}}}
		if got := d.Returns(); got != tt.want {
			t.Errorf("%s: Returns is %d, want %d", name, got, tt.want)
		}
	}
}

func TestDeadLetter(t *testing.T) {
	stamp := time.Unix(1638900000, 0)
	msg := amqp.Delivery{
		Body: []byte("\x00\xff"), ContentType: "text/plain", ContentEncoding: "gzip", DeliveryMode: amqp.Transient, Priority: 9,
		CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: stamp, Type: "t", AppId: "a",
		Exchange: "events", RoutingKey: "foo", DeliveryTag: 7, Redelivered: true, ConsumerTag: "svc",
	}
	want := amqp.Publishing{
		Body: []byte("\x00\xff"), ContentType: "text/plain", ContentEncoding: "gzip", DeliveryMode: amqp.Persistent, Priority: 9,
		CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: stamp, Type: "t", AppId: "a",
		Headers: amqp.Table{
			"x-reason": "malformed", "x-error": strings.Repeat("x", 1024), "x-attempts": int32(0),
			"x-exchange": "events", "x-routing-key": "foo", "x-failed-at": "2021-12-08T16:30:00.123456789Z",
		},
	}
	letter := consume.Failure{Reason: consume.ReasonMalformed, Err: errors.New(strings.Repeat("x", 1025))}
	if diff := cmp.Diff(want, deadLetter(msg, letter, failedAt)); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
}

// What would make the broker refuse, copy or drop a dead letter is moved to headers of ours, and
// a message that was dead before keeps where it came from first.
func TestDeadLetterHeaders(t *testing.T) {
	all := amqp.Table{
		"nil": nil, "bool": true, "long": int64(-1), "double": 1.5, "bytes": []byte("x"), "time": failedAt,
		"list": []any{"a", int32(1)}, "table": amqp.Table{"CC": "inside is not the broker's"},
	}
	came := amqp.Table{"x-exchange": "events", "x-routing-key": "foo"}
	from := func(headers amqp.Table) amqp.Delivery {
		return amqp.Delivery{Exchange: "events", RoutingKey: "foo", Headers: headers}
	}
	const direct, rewritten = "amq.rabbitmq.reply-to", "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAy"
	tests := map[string]struct {
		msg     amqp.Delivery
		want    amqp.Table // beside those of added
		replyTo string
	}{
		"of all kinds": {amqp.Delivery{Headers: all}, all, ""},
		"what the broker would act on": {
			amqp.Delivery{UserId: "guest", Expiration: "1000", ReplyTo: direct, Headers: amqp.Table{"CC": []any{"other-queue"}, "BCC": []any{"hidden"}, "cc": "kept"}},
			amqp.Table{
				"x-original-user_id": "guest", "x-original-expiration": "1000", "x-original-reply_to": direct,
				"x-original-CC": []any{"other-queue"}, "x-original-BCC": []any{"hidden"}, "cc": "kept",
			}, "",
		},
		"a direct reply that the broker has rewritten": {amqp.Delivery{ReplyTo: rewritten}, nil, rewritten},
		"an empty CC":         {amqp.Delivery{Headers: amqp.Table{"CC": nil}}, amqp.Table{"x-original-CC": nil}, ""},
		"from a quorum queue": {amqp.Delivery{Redelivered: true, Headers: amqp.Table{"x-delivery-count": int64(20), "trace": "1"}}, amqp.Table{"trace": "1"}, ""},
		"a letter that was published again": {
			amqp.Delivery{RoutingKey: "orders-queue", Headers: amqp.Table{
				"x-reason": "malformed", "x-error": "old", "x-attempts": int32(9), "x-exchange": "events", "x-routing-key": "first",
				"x-failed-at": "old", "x-original-expiration": "1000",
			}},
			amqp.Table{"x-exchange": "events", "x-routing-key": "first", "x-original-expiration": "1000"}, "",
		},
		"a letter that was published again, elsewhere": {
			from(amqp.Table{"x-failed-at": "old", "x-exchange": "", "x-routing-key": "first"}), amqp.Table{"x-exchange": "", "x-routing-key": "first"}, "",
		},
		"a copy from the end of the queue":       {amqp.Delivery{RoutingKey: "orders-queue", Headers: came}, came, ""},
		"a publisher's own x-exchange":           {from(amqp.Table{"x-exchange": "mine", "x-routing-key": "first"}), came, ""},
		"an x-exchange that is too long for one": {from(amqp.Table{"x-failed-at": "old", "x-exchange": strings.Repeat("x", 256), "x-routing-key": "first"}), came, ""},
		"an x-routing-key that is a table":       {from(amqp.Table{"x-failed-at": "old", "x-exchange": "first", "x-routing-key": amqp.Table{"a": "b"}}), came, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := maps.Clone(tt.msg.Headers)
			got := deadLetter(tt.msg, boom, failedAt)
			want := amqp.Publishing{DeliveryMode: amqp.Persistent, ReplyTo: tt.replyTo, Headers: added(tt.want)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("dead letter (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.msg.Headers); diff != "" {
				t.Errorf("the delivery's own headers have changed (-was +is):\n%s", diff)
			}
			if err := got.Headers.Validate(); err != nil {
				t.Errorf("the library cannot send the dead letter: %v", err)
			}
		})
	}
}

// A copy is the message, but for where it came from, what the broker would act on, and the count
// of its returns.
func TestCopy(t *testing.T) {
	msg := amqp.Delivery{
		Body: []byte("{}"), DeliveryMode: amqp.Transient, AppId: "plumber", UserId: "guest", Exchange: "events", RoutingKey: "foo",
		Redelivered: true, Headers: amqp.Table{"x-delivery-count": int64(7), "trace": "1"},
	}
	want := amqp.Publishing{
		Body: []byte("{}"), DeliveryMode: amqp.Transient, AppId: "plumber",
		Headers: amqp.Table{"trace": "1", "x-original-user_id": "guest", "x-exchange": "events", "x-routing-key": "foo"},
	}
	got := copyOf(msg)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("copy (-want +got):\n%s", diff)
	}
	again := amqp.Delivery{Body: got.Body, DeliveryMode: got.DeliveryMode, AppId: got.AppId, RoutingKey: "orders-queue", Headers: got.Headers}
	if diff := cmp.Diff(want, copyOf(again)); diff != "" {
		t.Errorf("copy of the copy (-want +got):\n%s", diff)
	}
}

// An error may quote any message.
func TestTruncate(t *testing.T) {
	for s, want := range map[string]string{
		"":                                    "",
		"12345678":                            "12345678",
		"123456789":                           "12345678",
		"1234567é":                            "1234567",
		"123456é":                             "123456é",
		"12345😀":                              "12345",
		"1234😀😀":                              "1234😀",
		"bad \xff\xfe":                        "bad \uFFFD",
		"123456\xff\xff":                      "123456",
		"boom" + strings.Repeat("\x80", 2000): "boom\uFFFD",
	} {
		if got := truncate(s, 8); got != want {
			t.Errorf("%.20q became %q, want %q", s, got, want)
		}
	}
}

// A dead letter whose headers do not fit into a frame keeps those that say why it is dead.
func TestOnlyAdded(t *testing.T) {
	all := added(amqp.Table{"huge": strings.Repeat("h", 130_000), "x-original-CC": []any{"q"}})
	if diff := cmp.Diff(added(amqp.Table{"x-dropped-headers": int32(2)}), onlyAdded(all)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}
