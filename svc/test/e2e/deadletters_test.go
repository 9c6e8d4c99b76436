package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/rabbit"
)

// wantStored checks that the dead queue contains each of these bodies once, and no other
// message. It removes the messages and returns them by body.
func (e *env) wantStored(bodies ...string) map[string]amqp.Delivery {
	e.t.Helper()
	stored, times := make(map[string]amqp.Delivery), make(map[string]int)
	for _, l := range e.deadLetters("orders") {
		stored[string(l.Body)] = l
		times[string(l.Body)]++
	}
	for _, body := range bodies {
		if times[body] != 1 {
			e.t.Errorf("%.50q is stored %d times, want once", body, times[body])
		}
		delete(times, body)
	}
	for body := range times {
		e.t.Errorf("%.50q is stored, but not expected", body)
	}
	return stored
}

// Dead letters that the broker refuses, here because of their size, do not delay others:
// the others are stored once each, and events are processed. The log names each refused
// event and the broker's reason once. Refused dead letters are retried on the same
// connection until they are stored.
func TestDeadLettersTooLarge(t *testing.T) {
	// The test is not parallel, because the limit applies to the whole broker.
	e := newBrokerEnv(t, newVhost(t), "orders")
	e.amqpURL = e.directAMQP
	relay := newRelay(e, 0)
	var large, bodies []string
	for i := range 3 {
		large = append(large, fmt.Sprintf(`{"type":"new_order","id":"large%d","pad":"%s"}`, i, strings.Repeat("x", 5000)))
		bodies = append(bodies, large[i])
		for j := range 33 {
			bodies = append(bodies, fmt.Sprint("poison ", i, " ", j))
		}
	}
	e.publishBodies(bodies...)
	e.publishBodies(orders("good", 20)...)
	limit := func(bytes int) {
		broker(t, fmt.Sprintf("application:set_env(rabbit, max_message_size, %d), persistent_term:put(max_message_size, %[1]d)", bytes))
	}
	limit(4096)
	t.Cleanup(func() { limit(128 << 20) })

	receiver := newReceiver(t, func(p post) int {
		if strings.HasPrefix(p.ID, "large") {
			return 400
		}
		return 200
	})
	s := e.start("orders", "WEBHOOK_URL="+receiver.URL, "HEALTH_ADDR=127.0.0.1:0", "PREFETCH=10", "CONCURRENCY=4")
	s.waitLogs(99, "msg=dead-lettered")
	s.waitLogs(20, "msg=processed")
	for i := range large {
		s.waitLog("level=WARN", "the broker refuses a dead letter", fmt.Sprint("id=large", i), "larger than configured max size 4096", "hint=", "max_message_size")
	}
	s.waitReady("dead_letters")
	<-time.After(4 * time.Second) // the first retry comes within 1.5 s, the second within another 2.25 s
	if n := s.log.count("level=WARN"); n != len(large) {
		t.Errorf("%d warnings, want %d", n, len(large))
	}
	if n := relay.accepted.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	limit(128 << 20)
	s.waitLogs(102, "msg=dead-lettered")
	s.waitReady()
	s.stop()
	if n := relay.accepted.Load(); n != 2 {
		t.Errorf("%d connections in all, want 2", n)
	}
	e.wantStored(bodies...)
}

// A full dead queue refuses dead letters. When the refused ones fill the prefetch, no
// more events are delivered, and the log says so. Once the queue has room again, all of
// them are stored and events are processed.
func TestDeadQueueFull(t *testing.T) {
	e, vhost := newBroker(t)
	e.publishBodies("poison 0", "poison 1", "poison 2", "poison 3", "poison 4")
	e.publishBodies(orders("behind", 3)...)
	ctl(t, "set_policy", "--vhost", vhost, "--apply-to", "queues", "full", `\.dead$`, `{"max-length":2,"overflow":"reject-publish"}`)
	s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0", "PREFETCH=3")
	s.waitLogs(2, "msg=dead-lettered")
	s.waitLogs(3, "level=WARN", "the broker refuses a dead letter", "basic.nack", "hint=", "max-length")
	s.waitLog("level=WARN", "no events are delivered", "refused=3", "hint=")
	s.waitReady("dead_letters")
	if n := s.log.count("msg=processed"); n > 0 {
		t.Error("an event was delivered despite a full prefetch")
	}
	ctl(t, "clear_policy", "--vhost", vhost, "full")
	s.waitLogs(5, "msg=dead-lettered")
	s.waitLogs(3, "msg=processed")
	s.waitReady()
	s.stop()
	if n := s.log.count("level=WARN"); n != 4 {
		t.Errorf("%d warnings, want 4", n)
	}
	e.wantStored("poison 0", "poison 1", "poison 2", "poison 3", "poison 4")
}

// With CONCURRENCY=1 a refused dead letter keeps its place in the order, so no more events
// are processed, and the log says so. A stop does not wait for it: its message stays in the
// queue, and is in its place at the next start.
func TestRefusedDeadLetterInOrder(t *testing.T) {
	e, vhost := newBroker(t)
	e.publishBodies("poison")
	e.publishBodies(orders("behind", 3)...)
	ctl(t, "set_policy", "--vhost", vhost, "--apply-to", "queues", "full", `\.dead$`, `{"max-length":0,"overflow":"reject-publish"}`)
	s := e.start("orders", "CONCURRENCY=1")
	s.waitLog("level=WARN", "the broker refuses a dead letter", "hint=", "max-length")
	s.waitLog("level=WARN", "no events are delivered", "hint=", "higher CONCURRENCY")
	s.stopWithin(syscall.SIGTERM, 2*time.Second)
	if n := s.log.count("msg=processed"); n > 0 {
		t.Errorf("%d events are processed before their turn", n)
	}
	e.waitDepth("orders-queue", 4)
	e.wantStored()
	ctl(t, "clear_policy", "--vhost", vhost, "full")
	s = e.start("orders", "CONCURRENCY=1")
	s.waitLogs(3, "msg=processed")
	s.stop()
	e.wantStored("poison")
}

// A dead letter that one of two brokers refuses is stored at the other, and the refusal
// is not logged as an outage.
func TestDeadLetterRefusedByOneOfTwo(t *testing.T) {
	e, vhost := newBroker(t)
	other := newBrokerEnv(t, newVhost(t), "orders")
	ctl(t, "set_policy", "--vhost", vhost, "--apply-to", "queues", "full", `\.dead$`, `{"max-length":0,"overflow":"reject-publish"}`)
	e.publishBodies("poison")
	if n := deadLetterOne(t, func() {}, e.amqpURL, other.directAMQP); n > 0 {
		t.Errorf("%d warnings", n)
	}
	other.wantStored("poison")
	e.wantStored()
}

// deadLetterOne has package rabbit consume from the first of several brokers, and dead-letter
// the first message. (The virtual hosts of one broker stand for several, which the service
// refuses.) consuming is called before that. It returns the number of warnings.
func deadLetterOne(t *testing.T, consuming func(), urls ...string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	var warnings lines
	stored := make(chan error, 1)
	stopped := make(chan error, 1)
	began := make(chan struct{}, 1)
	go func() {
		stopped <- rabbit.Consume(ctx, rabbit.Config{
			Server: rabbit.Server{URLs: urls, CloseTimeout: time.Second}, Topology: rabbit.Topology{Queue: "orders-queue"},
			Status: statusFunc(func(part string, err error) {
				if part == rabbit.PartConsumer && err == nil {
					began <- struct{}{}
				}
			}),
			Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &warnings), &slog.HandlerOptions{Level: slog.LevelWarn})),
			Low: 1, Prefetch: 1, Slow: func() bool { return false }, MaxInFlight: 1,
			Handle: func(ctx context.Context, d consume.Delivery) {
				err := d.DeadLetter(ctx, consume.Failure{Reason: consume.ReasonMalformed, Err: errors.New("not an event")})
				d.Ack()
				stored <- err
			},
		})
	}()
	<-began
	consuming()
	if err := <-stored; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	return warnings.Load()
}

type statusFunc func(part string, err error)

func (f statusFunc) Set(part string, err error) { f(part, err) }

// lines counts what is written to it.
type lines struct{ atomic.Int64 }

func (l *lines) Write(line []byte) (int, error) {
	l.Add(1)
	return len(line), nil
}

// A dead letter is stored at the other broker if the dead queue of the first cannot be made.
func TestDeadQueueCannotBeMade(t *testing.T) {
	e, vhost := newBroker(t)
	other := newBrokerEnv(t, newVhost(t), "orders")
	deadLetterOne(t, func() {
		e.channel(func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete("orders-queue.dead", false, false, false)
			return err
		})
		ctl(t, "set_vhost_limits", "--vhost", vhost, `{"max-queues":1}`)
		e.publishBodies("poison")
	}, e.amqpURL, other.directAMQP)
	other.wantStored("poison")
}

// A dead letter that a slow network carries for longer than confirmTimeout is stored at the
// first attempt.
func TestDeadLetterOverSlowNetwork(t *testing.T) {
	const rate, seconds = 100, 34 // KB a second
	e, _ := newBroker(t)
	way := e.proxyBroker()
	way.toxic(fmt.Sprintf(`{"name":"narrow","type":"bandwidth","stream":"upstream","attributes":{"rate":%d}}`, rate))
	large := "poison" + strings.Repeat(" ", seconds*rate<<10)
	e.publishBodies(large)
	s := e.start("orders")
	s.waitLog("msg=dead-lettered")
	s.stop()
	if n := s.log.count("level=WARN"); n > 0 {
		t.Errorf("%d warnings", n)
	}
	e.wantStored(large)
}

// A message with a direct reply-to is stored with the address that the broker has put
// there.
func TestDeadLetterOfDirectReply(t *testing.T) {
	e, _ := newBroker(t)
	s := e.start("orders")
	s.waitLog("msg=consuming")
	e.channel(func(ch *amqp.Channel) error {
		if _, err := ch.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil); err != nil {
			return err
		}
		return ch.Publish("events", "foo", false, false, amqp.Publishing{Body: []byte("poison"), ReplyTo: "amq.rabbitmq.reply-to"})
	})
	s.waitLog("msg=dead-lettered")
	s.stop()
	if l := e.wantStored("poison")["poison"]; !strings.HasPrefix(l.ReplyTo, "amq.rabbitmq.reply-to.") {
		t.Errorf("reply_to is %q", l.ReplyTo)
	}
}
