package rabbit

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// longestError bounds the header x-error, in bytes.
const longestError = 1 << 10

// Delivery is a consume.Delivery.
type Delivery struct {
	msg     amqp.Delivery
	settler *settler
	letters *DeadLetters
}

// Body returns the message as it was published.
func (d *Delivery) Body() []byte { return d.msg.Body }

// Ack has the delivery acknowledged on the channel that brought it.
func (d *Delivery) Ack() { d.settler.settle(d.msg.DeliveryTag) }

// DeadLetter publishes a copy to the dead queue and waits for the broker's
// confirmation.
func (d *Delivery) DeadLetter(ctx context.Context, l consume.Letter) error {
	return d.letters.publish(ctx, letter(d.msg, l, time.Now()))
}

// letter is the message as it was, and why it is dead. It is persistent, and
// what would make the broker refuse, copy or drop it has moved out of its way.
func letter(msg amqp.Delivery, l consume.Letter, now time.Time) amqp.Publishing {
	headers := make(amqp.Table, len(msg.Headers)+6)
	maps.Copy(headers, msg.Headers)
	aside := func(name string, value any, set bool) {
		if set {
			headers["x-original-"+name] = value
		}
	}
	aside("user_id", msg.UserId, msg.UserId != "")
	aside("expiration", msg.Expiration, msg.Expiration != "")
	for _, name := range []string{"CC", "BCC"} {
		value, set := headers[name]
		aside(name, value, set)
		delete(headers, name)
	}
	headers["x-reason"] = l.Reason
	headers["x-error"] = cut(l.Err.Error(), longestError)
	headers["x-attempts"] = int32(l.Attempts)
	headers["x-exchange"] = msg.Exchange
	headers["x-routing-key"] = msg.RoutingKey
	headers["x-failed-at"] = now.UTC().Format(time.RFC3339Nano)
	return amqp.Publishing{
		Headers: headers, Body: msg.Body, DeliveryMode: amqp.Persistent,
		ContentType: msg.ContentType, ContentEncoding: msg.ContentEncoding, Priority: msg.Priority,
		CorrelationId: msg.CorrelationId, ReplyTo: msg.ReplyTo, MessageId: msg.MessageId,
		Timestamp: msg.Timestamp, Type: msg.Type, AppId: msg.AppId,
	}
}

// cut makes at most n bytes of valid UTF-8 of s, which may quote anything.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 { // in the middle of a character
		n--
	}
	return s[:n]
}
