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
	must(t, err)
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
	must(t, err)
	t.Cleanup(func() { port.Close() })
	statsd, err := stack.StartStatsdAt(port.Addr())
	must(t, err)
	t.Cleanup(func() { statsd.Close() })
	return statsd
}

// must fails the test if err is not nil.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (e *env) must(err error) {
	e.t.Helper()
	must(e.t, err)
}

// clear removes keys, queues and the exchange that earlier tests have left.
func (e *env) clear() {
	e.t.Helper()
	_, err := e.etcd.Delete(deadline(e.t), "/", clientv3.WithPrefix())
	e.must(err)
	for _, queue := range []string{"orders-queue", "orders-queue.dead", "notify-queue", "notify-queue.dead"} {
		e.deleteQueue(queue)
	}
	e.deleteExchange()
}

func (e *env) deleteQueue(name string) {
	e.t.Helper()
	e.channel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, false, false, false)
		return err
	})
}

func (e *env) deleteExchange() {
	e.t.Helper()
	e.channel(func(ch *amqp.Channel) error { return ch.ExchangeDelete("events", false, false) })
}

// replaceQueue replaces orders-queue by one with these arguments, without a binding.
func (e *env) replaceQueue(arguments amqp.Table) {
	e.t.Helper()
	e.deleteQueue("orders-queue")
	e.channel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare("orders-queue", true, false, false, false, arguments)
		return err
	})
}

// quorum are the arguments of a quorum queue.
var quorum = amqp.Table{"x-queue-type": "quorum"}

// vars returns the environment of a service.
func (e *env) vars(vars ...string) []string {
	addresses := harness.Addresses{AMQP: e.amqpURL, Etcd: e.etcdEndpoints, Statsd: e.statsd.Addr()}
	// By default the race detector waits for a second at every exit.
	return append([]string{"GORACE=atexit_sleep_ms=0", "ETCD_PREFIX=/service/"}, addresses.Env(vars...)...)
}

// dial returns a channel on a connection of its own.
func (e *env) dial() (ch *amqp.Channel, stop func()) {
	e.t.Helper()
	conn, err := amqp.Dial(e.directAMQP)
	e.must(err)
	ch, err = conn.Channel()
	e.must(err)
	return ch, func() { conn.Close() }
}

// channel runs f on a channel of its own.
func (e *env) channel(f func(*amqp.Channel) error) {
	e.t.Helper()
	ch, stop := e.dial()
	defer stop()
	e.must(f(ch))
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
// returns -1 if the broker is unreachable.
func (e *env) depth(queue string) int {
	publisher := harness.Publisher{URL: e.directAMQP}
	defer publisher.Close()
	n, err := publisher.Ready(context.Background(), queue)
	if err != nil {
		return -1
	}
	return n
}

// waitCounts waits until the counters at statsd have these sums.
func (e *env) waitCounts(want map[string]int64) {
	e.t.Helper()
	err := e.statsd.Wait(deadline(e.t), func(counts map[string]int64) bool {
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
