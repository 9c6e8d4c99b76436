package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	stored := make(map[string]amqp.Delivery)
	var got []string
	for _, l := range e.deadLetters("orders") {
		stored[string(l.Body)] = l
		got = append(got, string(l.Body))
	}
	slices.Sort(got)
	slices.Sort(bodies)
	if !slices.Equal(bodies, got) {
		e.t.Errorf("the dead letters are %.50q, want %.50q", got, bodies)
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
		bodies = append(append(bodies, large[i]), idsOf(fmt.Sprint("poison ", i, " "), 33)...)
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
	s.wantLines(len(large), "level=WARN")
	limit(128 << 20)
	s.waitLogs(102, "msg=dead-lettered")
	s.waitReady()
	s.stop()
	if n := relay.accepted.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	e.wantStored(bodies...)
}

// A full dead queue refuses dead letters. When the refused ones fill the prefetch, no
// more events are delivered, and the log says so. Once the queue has room again, all of
// them are stored and events are processed.
func TestDeadQueueFull(t *testing.T) {
	e, vhost := newBroker(t)
	poison := idsOf("poison ", 5)
	e.publishBodies(slices.Concat(poison, orders("behind", 3))...)
	makeRoom := fillDeadQueue(t, vhost, 2)
	s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0", "PREFETCH=3")
	s.waitLogs(2, "msg=dead-lettered")
	s.waitLogs(3, "level=WARN", "the broker refuses a dead letter", "basic.nack", "hint=", "max-length")
	s.waitLog("level=WARN", "no events are delivered", "refused=3", "hint=")
	s.waitReady("dead_letters")
	s.wantLines(0, "msg=processed")
	makeRoom()
	s.waitLogs(5, "msg=dead-lettered")
	s.waitLogs(3, "msg=processed")
	s.waitReady()
	s.stop()
	s.wantLines(4, "level=WARN")
	e.wantStored(poison...)
}

// With CONCURRENCY=1 a refused dead letter keeps its place in the order, so no more events
// are processed, and the log says so. A stop does not wait for it: its message stays in the
// queue, and is in its place at the next start.
func TestRefusedDeadLetterInOrder(t *testing.T) {
	e, vhost := newBroker(t)
	e.publishBodies("poison")
	e.publishBodies(orders("behind", 3)...)
	makeRoom := fillDeadQueue(t, vhost, 0)
	s := e.start("orders", "CONCURRENCY=1")
	s.waitLog("level=WARN", "the broker refuses a dead letter", "hint=", "max-length")
	s.waitLog("level=WARN", "no events are delivered", "hint=", "higher CONCURRENCY")
	s.stopWithin(syscall.SIGTERM, 2*time.Second)
	s.wantLines(0, "msg=processed") // before their turn
	e.waitDepth("orders-queue", 4)
	e.wantStored()
	makeRoom()
	s = e.start("orders", "CONCURRENCY=1")
	s.waitLogs(3, "msg=processed")
	s.stop()
	e.wantStored("poison")
}

// A dead letter that one of two brokers refuses, or for which it cannot make the dead queue, is
// stored at the other. A refusal is not logged as an outage. (The virtual hosts of one broker
// stand for several, which the service refuses.)
func TestDeadLetterAtTheOtherBroker(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(t *testing.T, e *env, vhost string){
		"refused": func(t *testing.T, _ *env, vhost string) { fillDeadQueue(t, vhost, 0) },
		"not made": func(t *testing.T, e *env, vhost string) {
			e.deleteQueue("orders-queue.dead")
			ctl(t, "set_vhost_limits", "--vhost", vhost, `{"max-queues":1}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, vhost := newBroker(t)
			other := newBrokerEnv(t, newVhost(t), "orders")
			stored, began, warnings := make(chan error, 1), make(chan struct{}, 1), strings.Builder{}
			config := consuming(1, func(ctx context.Context, d consume.Delivery) {
				err := d.DeadLetter(ctx, consume.Failure{Reason: consume.ReasonMalformed, Err: errors.New("not an event")})
				d.Ack()
				stored <- err
			}, first.amqpURL, other.directAMQP)
			config.Status = statusFunc(func(part string, err error) {
				if part == rabbit.PartConsumer && err == nil {
					began <- struct{}{}
				}
			})
			config.Log = slog.New(slog.NewTextHandler(&warnings, &slog.HandlerOptions{Level: slog.LevelWarn}))
			ctx, cancel := context.WithCancel(deadline(t))
			stopped := make(chan error, 1)
			go func() { stopped <- rabbit.Consume(ctx, config) }()
			<-began
			refuse(t, first, vhost)
			first.publishBodies("poison")
			first.must(<-stored)
			cancel()
			first.must(<-stopped)
			other.wantStored("poison")
			if name == "refused" {
				first.wantStored()
				if warnings.Len() > 0 {
					t.Error(warnings.String())
				}
			}
		})
	}
}

type statusFunc func(part string, err error)

func (f statusFunc) Set(part string, err error) { f(part, err) }

// fillDeadQueue makes the dead queues of a virtual host refuse more messages than room.
func fillDeadQueue(t *testing.T, vhost string, room int) (end func()) {
	t.Helper()
	ctl(t, "set_policy", "--vhost", vhost, "--apply-to", "queues", "full", `\.dead$`, fmt.Sprintf(`{"max-length":%d,"overflow":"reject-publish"}`, room))
	return func() { ctl(t, "clear_policy", "--vhost", vhost, "full") }
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
	s.wantLines(0, "level=WARN")
	e.wantStored(large)
}
