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
	tests := map[string]struct {
		redelivered bool
		header      any
		want        int
	}{
		"returned":              {true, int64(7), 7},
		"to a classic queue":    {true, nil, 0},
		"of a publisher":        {false, int64(20), 0},
		"of an unexpected type": {true, "20", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := &Delivery{msg: amqp.Delivery{Redelivered: tt.redelivered, Headers: amqp.Table{"x-delivery-count": tt.header}}}
			if got := d.Returns(); got != tt.want {
				t.Errorf("Returns is %d, want %d", got, tt.want)
			}
		})
	}
}

func TestDeadLetter(t *testing.T) {
	stamp := time.Unix(1638900000, 0)
	tests := map[string]struct {
		msg    amqp.Delivery
		letter consume.Failure
		want   amqp.Publishing
	}{
		"as plumber publishes": {
			msg: amqp.Delivery{
				Body: []byte(`{"type":"new_order","id":"123"}`), DeliveryMode: amqp.Persistent, AppId: "plumber",
				Exchange: "events", RoutingKey: "foo", DeliveryTag: 7, Redelivered: true, ConsumerTag: "svc",
			},
			letter: boom,
			want: amqp.Publishing{
				Body: []byte(`{"type":"new_order","id":"123"}`), DeliveryMode: amqp.Persistent, AppId: "plumber",
				Headers: added(amqp.Table{"x-exchange": "events", "x-routing-key": "foo"}),
			},
		},
		"all properties": {
			msg: amqp.Delivery{
				Body: []byte("\x00\xff"), ContentType: "text/plain", ContentEncoding: "gzip", DeliveryMode: amqp.Persistent, Priority: 9,
				CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: stamp, Type: "t", AppId: "a",
			},
			letter: boom,
			want: amqp.Publishing{
				Body: []byte("\x00\xff"), ContentType: "text/plain", ContentEncoding: "gzip", DeliveryMode: amqp.Persistent, Priority: 9,
				CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: stamp, Type: "t", AppId: "a",
				Headers: added(nil),
			},
		},
		"a transient message is made persistent": {
			msg:    amqp.Delivery{DeliveryMode: amqp.Transient},
			letter: boom,
			want:   amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(nil)},
		},
		"what the broker would act on": {
			msg: amqp.Delivery{
				UserId: "guest", Expiration: "1000",
				Headers: amqp.Table{"CC": []any{"other-queue"}, "BCC": []any{"hidden"}, "cc": "kept", "trace": "1"},
			},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-original-user_id": "guest", "x-original-expiration": "1000",
				"x-original-CC": []any{"other-queue"}, "x-original-BCC": []any{"hidden"}, "cc": "kept", "trace": "1",
			})},
		},
		"from a quorum queue": {
			msg:    amqp.Delivery{Redelivered: true, Headers: amqp.Table{"x-delivery-count": int64(20), "trace": "1"}},
			letter: boom,
			want:   amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{"trace": "1"})},
		},
		"an empty CC": {
			msg:    amqp.Delivery{Headers: amqp.Table{"CC": nil}},
			letter: boom,
			want:   amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{"x-original-CC": nil})},
		},
		"headers of all kinds": {
			msg: amqp.Delivery{Headers: amqp.Table{
				"nil": nil, "bool": true, "long": int64(-1), "double": 1.5, "bytes": []byte("x"), "time": stamp,
				"list": []any{"a", int32(1)}, "table": amqp.Table{"CC": "inside is not the broker's"},
			}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"nil": nil, "bool": true, "long": int64(-1), "double": 1.5, "bytes": []byte("x"), "time": stamp,
				"list": []any{"a", int32(1)}, "table": amqp.Table{"CC": "inside is not the broker's"},
			})},
		},
		"a letter that was published again": {
			msg: amqp.Delivery{Exchange: "", RoutingKey: "orders-queue", Headers: amqp.Table{
				"x-reason": "malformed", "x-error": "old", "x-attempts": int32(9), "x-exchange": "events", "x-routing-key": "first",
				"x-failed-at": "old", "x-original-expiration": "1000",
			}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-exchange": "events", "x-routing-key": "first", "x-original-expiration": "1000",
			})},
		},
		"a publisher's own x-exchange": {
			msg:    amqp.Delivery{Exchange: "events", RoutingKey: "foo", Headers: amqp.Table{"x-exchange": "mine"}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-exchange": "events", "x-routing-key": "foo",
			})},
		},
		"an x-exchange that is too long for one": {
			msg: amqp.Delivery{Exchange: "events", RoutingKey: "foo", Headers: amqp.Table{
				"x-failed-at": "old", "x-exchange": strings.Repeat("x", 256), "x-routing-key": "first",
			}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-exchange": "events", "x-routing-key": "foo",
			})},
		},
		"an x-routing-key that is a table": {
			msg: amqp.Delivery{Exchange: "events", RoutingKey: "foo", Headers: amqp.Table{
				"x-failed-at": "old", "x-exchange": "first", "x-routing-key": amqp.Table{"a": "b"},
			}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-exchange": "events", "x-routing-key": "foo",
			})},
		},
		"reply_to of a direct reply": {
			msg:    amqp.Delivery{ReplyTo: "amq.rabbitmq.reply-to"},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-original-reply_to": "amq.rabbitmq.reply-to",
			})},
		},
		"reply_to of a direct reply that the broker has rewritten": {
			msg:    amqp.Delivery{ReplyTo: "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAy"},
			letter: boom,
			want:   amqp.Publishing{DeliveryMode: amqp.Persistent, ReplyTo: "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAy", Headers: added(nil)},
		},
		"of a copy from the end of the queue": {
			msg: amqp.Delivery{Exchange: "", RoutingKey: "orders-queue", Headers: amqp.Table{
				"x-exchange": "events", "x-routing-key": "foo", "x-original-expiration": "1000",
			}},
			letter: boom,
			want: amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-exchange": "events", "x-routing-key": "foo", "x-original-expiration": "1000",
			})},
		},
		"malformed": {
			msg:    amqp.Delivery{Body: []byte("new_order 1")},
			letter: consume.Failure{Reason: consume.ReasonMalformed, Err: errors.New("body is not a JSON event")},
			want: amqp.Publishing{Body: []byte("new_order 1"), DeliveryMode: amqp.Persistent, Headers: added(amqp.Table{
				"x-reason": "malformed", "x-error": "body is not a JSON event", "x-attempts": int32(0),
			})},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := maps.Clone(tt.msg.Headers)
			got := deadLetter(tt.msg, tt.letter, failedAt)
			if diff := cmp.Diff(tt.want, got); diff != "" {
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

func TestDeadLetterTruncatesTheError(t *testing.T) {
	const bad = "\uFFFD" // for bytes that are not UTF-8: an error may quote any message
	tests := map[string]struct{ err, want string }{
		"empty":                  {"", ""},
		"as long as it may be":   {strings.Repeat("x", 1024), strings.Repeat("x", 1024)},
		"longer":                 {strings.Repeat("x", 1025), strings.Repeat("x", 1024)},
		"two bytes at the cut":   {strings.Repeat("x", 1023) + "é", strings.Repeat("x", 1023)},
		"two bytes to the cut":   {strings.Repeat("x", 1022) + "é", strings.Repeat("x", 1022) + "é"},
		"four bytes at the cut":  {strings.Repeat("x", 1021) + "😀", strings.Repeat("x", 1021)},
		"four bytes all the way": {"x" + strings.Repeat("😀", 300), "x" + strings.Repeat("😀", 255)},
		"not UTF-8":              {"the answer was \xff\xfe", "the answer was " + bad},
		"not UTF-8 at the cut":   {strings.Repeat("x", 1022) + "\xff\xff", strings.Repeat("x", 1022)},
		"continuation bytes":     {"boom" + strings.Repeat("\x80", 2000), "boom" + bad},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := consume.Failure{Reason: consume.ReasonFailed, Err: errors.New(tt.err), Attempts: 1}
			if got := deadLetter(amqp.Delivery{}, f, failedAt).Headers["x-error"]; got != tt.want {
				t.Errorf("%.60q became %.60q, want %.60q", tt.err, got, tt.want)
			}
		})
	}
}

// A dead letter whose headers do not fit into a frame keeps those that say why it is dead.
func TestOnlyAdded(t *testing.T) {
	all := added(amqp.Table{"huge": strings.Repeat("h", 130_000), "x-original-CC": []any{"q"}})
	if diff := cmp.Diff(added(amqp.Table{"x-dropped-headers": int32(2)}), onlyAdded(all)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}
