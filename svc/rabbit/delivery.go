package rabbit

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/event"
)

// maxErrorLen bounds the header x-error, in bytes.
const maxErrorLen = 1 << 10

// Delivery is a consume.Delivery.
type Delivery struct {
	msg       amqp.Delivery
	acker     *acker
	publisher *publisher
}

// Body returns the message as it was published.
func (d *Delivery) Body() []byte { return d.msg.Body }

// Headers returns the message's headers.
func (d *Delivery) Headers() map[string]any { return d.msg.Headers }

// Returns is how often a quorum queue has taken the message back. Classic queues do not count
// that. A publisher can send the header, but a queue that counts replaces it at a return.
func (d *Delivery) Returns() int {
	n, _ := d.msg.Headers["x-delivery-count"].(int64)
	if !d.msg.Redelivered {
		return 0
	}
	return int(n)
}

// Held is how many deliveries the consumer holds at most.
func (d *Delivery) Held() int { return int(d.publisher.held.Load()) }

// Ack has the delivery acknowledged on the channel that brought it.
func (d *Delivery) Ack() { d.acker.finish(d.msg.DeliveryTag) }

// DeadLetter publishes a copy to the dead queue and waits for the broker's
// confirmation.
func (d *Delivery) DeadLetter(ctx context.Context, f consume.Failure) error {
	return d.publisher.publish(ctx, d.publisher.Topology.deadQueue(), deadLetter(d.msg, f, time.Now()))
}

// Requeue publishes a copy to the end of the queue and waits for the broker's confirmation. It
// logs what the broker refuses.
func (d *Delivery) Requeue(ctx context.Context) error {
	began := time.Now()
	err := d.publisher.publish(ctx, d.publisher.Topology.Queue, copyOf(d.msg))
	switch {
	case err == nil:
		d.publisher.unmoved.Answered(began)
	case refuses(err):
		e, _ := event.Parse(d.msg.Body)
		d.publisher.unmoved.Failed(began, err, Hint(err), "id", e.ID)
	}
	return err
}

// directReplyTo stands for the publisher's own channel, which must consume from
// it: the broker refuses the message from anyone else.
const directReplyTo = "amq.rabbitmq.reply-to"

// deadLetter returns a copy of the message that is persistent, with the headers that say why it
// is dead.
func deadLetter(msg amqp.Delivery, f consume.Failure, now time.Time) amqp.Publishing {
	letter := copyOf(msg)
	letter.DeliveryMode = amqp.Persistent
	letter.Headers["x-reason"] = f.Reason
	letter.Headers["x-error"] = truncate(f.Err.Error(), maxErrorLen)
	letter.Headers["x-attempts"] = int32(f.Attempts)
	letter.Headers["x-failed-at"] = now.UTC().Format(time.RFC3339Nano)
	return letter
}

// copyOf returns the message unchanged but for the headers that say where it came from. What
// would make the broker refuse, copy or drop it is moved to headers x-original-….
func copyOf(msg amqp.Delivery) amqp.Publishing {
	headers := make(amqp.Table, len(msg.Headers)+6)
	maps.Copy(headers, msg.Headers)
	if msg.UserId != "" {
		headers["x-original-user_id"] = msg.UserId
	}
	if msg.Expiration != "" {
		headers["x-original-expiration"] = msg.Expiration
	}
	if msg.ReplyTo == directReplyTo {
		headers["x-original-reply_to"] = msg.ReplyTo
		msg.ReplyTo = ""
	}
	for _, name := range []string{"CC", "BCC"} {
		if value, set := headers[name]; set {
			headers["x-original-"+name] = value
			delete(headers, name)
		}
	}
	// A dead letter that was published again, and a copy, which comes through the default
	// exchange, keep where they came from first.
	if headers["x-failed-at"] == nil && msg.Exchange != "" || !isName(headers["x-exchange"]) || !isName(headers["x-routing-key"]) {
		headers["x-exchange"] = msg.Exchange
		headers["x-routing-key"] = msg.RoutingKey
	}
	delete(headers, "x-delivery-count") // of this queue: a replayed message begins anew
	return amqp.Publishing{
		Headers: headers, Body: msg.Body, DeliveryMode: msg.DeliveryMode,
		ContentType: msg.ContentType, ContentEncoding: msg.ContentEncoding, Priority: msg.Priority,
		CorrelationId: msg.CorrelationId, ReplyTo: msg.ReplyTo, MessageId: msg.MessageId,
		Timestamp: msg.Timestamp, Type: msg.Type, AppId: msg.AppId,
	}
}

// onlyAdded returns those of a dead letter's headers that every dead letter has, and the number
// of the others. A message can arrive with headers that leave no space in a frame for ours.
func onlyAdded(headers amqp.Table) amqp.Table {
	added := amqp.Table{}
	for _, name := range []string{"x-reason", "x-error", "x-attempts", "x-exchange", "x-routing-key", "x-failed-at"} {
		if value, set := headers[name]; set {
			added[name] = value
		}
	}
	added["x-dropped-headers"] = int32(len(headers) - len(added))
	return added
}

// isName reports whether a header can be the name of an exchange, or a routing key. A
// publisher can send anything, and onlyAdded keeps these headers.
func isName(header any) bool {
	name, ok := header.(string)
	return ok && len(name) <= 255
}

// truncate makes at most n bytes of valid UTF-8 of s, which may quote anything.
func truncate(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.ToValidUTF8(s[:min(n, len(s))], "") // without half a character at the end
}
