package e2e

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// env is the environment of one test: addresses for its services, and the test's own
// clients of the servers behind them.
type env struct {
	t             testing.TB
	amqpURL       string // for the services; the test itself uses directAMQP
	etcdEndpoints string
	statsd        *stack.Statsd
	started       atomic.Int32

	directAMQP string
	etcd       *clientv3.Client
}

// newEnv returns an env on the shared broker and etcd, and empties them. Tests with it
// must not be parallel.
func newEnv(t *testing.T) *env {
	return newEnvOn(t, shared.rabbit.URL(), shared.etcd)
}

func newEnvOn(t testing.TB, amqpURL string, etcd ...*stack.Etcd) *env {
	t.Helper()
	var endpoints []string
	for _, member := range etcd {
		endpoints = append(endpoints, member.Endpoint())
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	e := &env{
		t: t, amqpURL: amqpURL, directAMQP: amqpURL, etcdEndpoints: strings.Join(endpoints, ","),
		statsd: newStatsd(t), etcd: client,
	}
	e.clear()
	return e
}

// newStatsd returns a statsd whose port stays reserved while it is closed, see listen.
func newStatsd(t testing.TB) *stack.Statsd {
	t.Helper()
	port, err := stack.ReserveUDPPort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	statsd, err := stack.StartStatsdAt(port.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { statsd.Close() })
	return statsd
}

// must fails the test if err is not nil.
func (e *env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// clear removes keys, queues and the exchange that earlier tests have left.
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

// vars returns the environment of a service.
func (e *env) vars(vars ...string) []string {
	addresses := harness.Addresses{AMQP: e.amqpURL, Etcd: e.etcdEndpoints, Statsd: e.statsd.Addr()}
	// By default the race detector waits for a second at every exit.
	return append([]string{"GORACE=atexit_sleep_ms=0", "ETCD_PREFIX=/service/"}, addresses.Env(vars...)...)
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

// topology declares the exchange and the queues of roles, so that events can be published
// before their services run.
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

// publish publishes messages as plumber does, and waits for their confirms.
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

// plumber returns a message as `plumber write rabbit` sends it.
func plumber(body string) amqp.Publishing { return harness.Message(body) }

// orders returns the bodies of n new_order events with ids of that prefix.
func orders(prefix string, n int) []string {
	bodies := idsOf(prefix, n)
	for i, id := range bodies {
		bodies[i] = harness.NewOrder(id)
	}
	return bodies
}

// depth returns how many messages wait in a queue, without unacknowledged deliveries. It
// returns -1 if the queue does not exist or the broker is unreachable.
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

// waitCounts waits until the counters at statsd have these sums.
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

// deadLetters removes and returns all messages of a role's dead queue.
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

// waitPrimed waits until statsd has received a counter.
func (e *env) waitPrimed(name string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	if err := e.statsd.Wait(ctx, func(counts map[string]int64) bool { _, ok := counts[name]; return ok }); err != nil {
		e.t.Fatalf("statsd has not received %s: %v", name, e.statsd.Counts())
	}
}
