package rabbit

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streadway/amqp"
)

// propertiesFrame publishes msg with the library to a fake broker that accepts
// everything, and returns the frame with its properties.
func propertiesFrame(t *testing.T, msg amqp.Publishing) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	seen := make(chan []byte, 1)
	go func() {
		defer server.Close()
		reply := func(channel byte, method ...byte) {
			frame := append([]byte{1, 0, channel, 0, 0, byte(len(method) >> 8), byte(len(method))}, method...)
			server.Write(append(frame, 0xCE))
		}
		io.ReadFull(server, make([]byte, 8))
		reply(0, append([]byte{0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5}, "PLAIN\x00\x00\x00\x05en_US"...)...)
		for {
			head := make([]byte, 7)
			if _, err := io.ReadFull(server, head); err != nil {
				return
			}
			size := int(head[3])<<24 | int(head[4])<<16 | int(head[5])<<8 | int(head[6])
			body := make([]byte, size+1)
			if _, err := io.ReadFull(server, body); err != nil {
				return
			}
			switch {
			case head[0] == 2:
				seen <- append(head, body...)
				return
			case bytes.HasPrefix(body, []byte{0, 10, 0, 11}): // start-ok
				reply(0, 0, 10, 0, 30, 0, 0, 0, 2, 0, 0, 0, 0)
			case bytes.HasPrefix(body, []byte{0, 10, 0, 40}): // open
				reply(0, 0, 10, 0, 41, 0)
			case bytes.HasPrefix(body, []byte{0, 20, 0, 10}): // channel open
				reply(1, 0, 20, 0, 11, 0, 0, 0, 0)
			}
		}
	}()
	conn, err := amqp.Open(client, amqp.Config{Vhost: "/", SASL: []amqp.Authentication{&amqp.PlainAuth{Username: "u", Password: "p"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	ch.Publish("", "q", false, false, msg)
	return <-seen
}

func allFields() amqp.Publishing {
	at := time.Unix(1_700_000_000, 0)
	values := amqp.Table{
		"nil": nil, "bool": true, "byte": byte(1), "int16": int16(1), "int": 1, "int32": int32(1), "int64": int64(1), "float32": float32(1),
		"float64": 1.5, "decimal": amqp.Decimal{Scale: 2, Value: 1}, "string": "é", "bytes": []byte{1, 2, 3}, "time": at,
		"array": []any{"a", nil, []any{true}, amqp.Table{"k": int64(1)}}, "table": amqp.Table{"a": amqp.Table{"b": at}},
	}
	return amqp.Publishing{
		Headers: values, ContentType: "text/plain", ContentEncoding: "none", DeliveryMode: amqp.Persistent, Priority: 7, CorrelationId: "c",
		ReplyTo: "r", Expiration: "1", MessageId: "m", Timestamp: at, Type: "t", UserId: "u", AppId: "a",
	}
}

// headerFrame returns the size of the frame that the library writes. It may estimate
// too much, which does no harm, but never too little.
func TestHeaderFrame(t *testing.T) {
	msg := allFields()
	if got, want := headerFrame(msg), len(propertiesFrame(t, msg))+1; got != want { // one for the table's type, which is not written
		t.Errorf("all fields: %d bytes, want %d", got, want)
	}
	if got, least := headerFrame(amqp.Publishing{}), len(propertiesFrame(t, amqp.Publishing{})); got < least {
		t.Errorf("no fields: %d bytes, the library writes %d", got, least)
	}
}

func TestTrimHeaders(t *testing.T) {
	const frame = 4096 // the least that AMQP allows
	long := func(n int) string { return strings.Repeat("x", n) }
	ourHeaders := amqp.Table{ // at their maximum size
		"x-reason": "malformed", "x-error": long(maxErrorLen), "x-attempts": int32(1), "x-exchange": long(255), "x-routing-key": long(255),
		"x-failed-at": time.RFC3339Nano,
	}
	with := func(more amqp.Table) amqp.Table {
		all := amqp.Table{}
		for _, table := range []amqp.Table{ourHeaders, more} {
			for name, value := range table {
				all[name] = value
			}
		}
		return all
	}
	largest := amqp.Publishing{
		ContentType: long(255), ContentEncoding: long(255), CorrelationId: long(255), ReplyTo: long(255), MessageId: long(255), Type: long(255), AppId: long(255),
		DeliveryMode: amqp.Persistent, Priority: 9, Timestamp: time.Now(),
	}
	room := frame - headerFrame(amqp.Publishing{Headers: ourHeaders})
	tests := map[string]struct {
		msg        amqp.Publishing
		more, want amqp.Table // headers besides ourHeaders
	}{
		"none":          {amqp.Publishing{}, nil, nil},
		"just fits":     {amqp.Publishing{}, amqp.Table{"a": long(room - 7)}, amqp.Table{"a": long(room - 7)}},
		"one too many":  {amqp.Publishing{}, amqp.Table{"a": long(room - 6)}, amqp.Table{droppedHeader: int32(1)}},
		"largest first": {amqp.Publishing{}, amqp.Table{"a": "1", "b": long(2000), "c": long(600), "d": amqp.Table{"e": long(3000)}}, amqp.Table{"a": "1", "c": long(600), droppedHeader: int32(2)}},
		"properties":    {largest, amqp.Table{"a": long(100_000), "x-original-user_id": long(255), "b": "1"}, amqp.Table{"x-original-user_id": long(255), "b": "1", droppedHeader: int32(1)}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.msg.Headers = with(tt.more)
			got := trimHeaders(tt.msg, frame)
			if diff := cmp.Diff(with(tt.want), got.Headers); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			if n := headerFrame(got); n > frame {
				t.Errorf("%d bytes", n)
			}
			if diff := cmp.Diff(with(tt.more), tt.msg.Headers); diff != "" {
				t.Errorf("trimHeaders changed its argument:\n%s", diff)
			}
			if all := trimHeaders(tt.msg, 0); len(all.Headers) != len(tt.msg.Headers) {
				t.Errorf("without a limit %d headers are left", len(all.Headers))
			}
		})
	}
}
