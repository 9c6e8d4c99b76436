package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/harness"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// env is what one test has: addresses for the services to use, and clients
// of its own of the servers behind them.
type env struct {
	t             testing.TB
	amqpURL       string // of the services; the test's own way is direct
	etcdEndpoints string
	statsd        *stack.Statsd
	started       atomic.Int32

	directAMQP string
	etcd       *clientv3.Client
}

// newEnv returns an empty broker and an empty etcd: the shared ones. Such tests
// are not parallel.
func newEnv(t *testing.T) *env {
	return newEnvOn(t, shared.rabbit.URL(), shared.etcd)
}

func newEnvOn(t testing.TB, amqpURL string, etcd ...*stack.Etcd) *env {
	t.Helper()
	var endpoints []string
	for _, member := range etcd {
		endpoints = append(endpoints, member.Endpoint())
	}
	statsd, err := stack.StartStatsd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { statsd.Close() })
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	e := &env{
		t: t, amqpURL: amqpURL, directAMQP: amqpURL, etcdEndpoints: strings.Join(endpoints, ","),
		statsd: statsd, etcd: client,
	}
	e.clear()
	return e
}

// must ends the test at an error.
func (e *env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// clear forgets what earlier tests have left.
func (e *env) clear() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	if _, err := e.etcd.Delete(ctx, "/", clientv3.WithPrefix()); err != nil {
		e.t.Fatal(err)
	}
	for _, role := range []string{"orders", "notify"} {
		for _, queue := range []string{role + "-queue", role + "-queue.dead"} {
			e.channel(func(ch *amqp.Channel) error {
				_, err := ch.QueueDelete(queue, false, false, false)
				return err
			})
		}
	}
	e.channel(func(ch *amqp.Channel) error { return ch.ExchangeDelete("events", false, false) })
}

// vars is the environment of a service.
func (e *env) vars(vars ...string) []string {
	addresses := harness.Addresses{AMQP: e.amqpURL, Etcd: e.etcdEndpoints, Statsd: e.statsd.Addr()}
	// The race detector would wait for a second at every exit.
	return append([]string{"GORACE=atexit_sleep_ms=0"}, addresses.Env(vars...)...)
}

// channel runs f on a channel of its own.
func (e *env) channel(f func(*amqp.Channel) error) {
	e.t.Helper()
	conn, err := amqp.Dial(e.directAMQP)
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		e.t.Fatal(err)
	}
	if err := f(ch); err != nil {
		e.t.Fatal(err)
	}
}

// topology declares what a role declares, so that events can be published
// before it has ever run.
func (e *env) topology(roles ...string) {
	e.t.Helper()
	e.channel(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare("events", "topic", true, false, false, false, nil); err != nil {
			return err
		}
		for _, role := range roles {
			if _, err := ch.QueueDeclare(role+"-queue", true, false, false, false, nil); err != nil {
				return err
			}
			if err := ch.QueueBind(role+"-queue", "#", "events", false, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// publish sends messages as plumber does, and waits for their confirms.
func (e *env) publish(msgs ...amqp.Publishing) {
	e.t.Helper()
	publisher := harness.Publisher{URL: e.directAMQP}
	defer publisher.Close()
	e.must(publisher.Publish(context.Background(), msgs...))
}

func (e *env) publishBodies(bodies ...string) {
	e.t.Helper()
	msgs := make([]amqp.Publishing, len(bodies))
	for i, b := range bodies {
		msgs[i] = plumber(b)
	}
	e.publish(msgs...)
}

// plumber is a message as `plumber write rabbit` sends it.
func plumber(body string) amqp.Publishing { return harness.Message(body) }

// orders returns the bodies of n new_order events with ids of that prefix.
func orders(prefix string, n int) []string {
	bodies := idsOf(prefix, n)
	for i, id := range bodies {
		bodies[i] = fmt.Sprintf(`{"type":"new_order","id":"%s"}`, id)
	}
	return bodies
}

// depth returns how many messages wait in a queue, those that were delivered
// and not acknowledged not counted; -1: there is no such queue.
func (e *env) depth(queue string) int {
	conn, err := amqp.Dial(e.directAMQP)
	if err != nil {
		return -1
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return -1
	}
	q, err := ch.QueueInspect(queue)
	if err != nil {
		return -1
	}
	return q.Messages
}

// waitCounts waits until statsd has these sums.
func (e *env) waitCounts(want map[string]int64) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	err := e.statsd.Wait(ctx, func(counts map[string]int64) bool {
		for name, n := range want {
			if counts[name] != n {
				return false
			}
		}
		return true
	})
	if err != nil {
		e.t.Fatalf("counters are %v, want %v", e.statsd.Counts(), want)
	}
}

// deadLetters takes all messages out of a role's dead queue.
func (e *env) deadLetters(role string) []amqp.Delivery {
	e.t.Helper()
	var letters []amqp.Delivery
	e.channel(func(ch *amqp.Channel) error {
		for {
			d, ok, err := ch.Get(role+"-queue.dead", true)
			if err != nil || !ok {
				return err
			}
			letters = append(letters, d)
		}
	})
	return letters
}

// waitPrimed waits until statsd has heard of a counter.
func (e *env) waitPrimed(name string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	if err := e.statsd.Wait(ctx, func(counts map[string]int64) bool { _, ok := counts[name]; return ok }); err != nil {
		e.t.Fatalf("%s was not primed: %v", name, e.statsd.Counts())
	}
}
