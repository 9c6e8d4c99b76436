package stack_test

import (
	"context"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What etcd has answered outlives a power cut, and it can be frozen.
func TestEtcd(t *testing.T) {
	ctx := deadline(t)
	e, err := stack.StartEtcd(ctx, t.TempDir(), stack.EtcdOptions{})
	check(t, err)
	t.Cleanup(func() { e.Close() })
	client, err := e.Client()
	check(t, err)
	defer client.Close()
	_, err = client.Put(ctx, "k", "v")
	check(t, err)
	e.Kill()
	check(t, e.Start(ctx))
	check(t, e.Pause())
	frozen, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := client.Get(frozen, "k"); err == nil {
		t.Error("a frozen etcd has answered")
	}
	check(t, e.Resume())
	resp, err := client.Get(ctx, "k")
	check(t, err)
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v" {
		t.Errorf("after a restart: %v", resp.Kvs)
	}
	check(t, e.Stop(ctx))
	check(t, e.Start(ctx))
}

// A cluster goes on without one of its members.
func TestEtcdCluster(t *testing.T) {
	ctx := deadline(t)
	members, err := stack.StartEtcdCluster(ctx, t.TempDir(), 3, stack.EtcdOptions{})
	check(t, err)
	for _, m := range members {
		t.Cleanup(func() { m.Close() })
	}
	members[0].Kill()
	client, err := members[1].Client()
	check(t, err)
	defer client.Close()
	_, err = client.Put(ctx, "k", "v")
	check(t, err)
}

// What RabbitMQ has confirmed outlives a power cut; two nodes make a cluster.
func TestRabbit(t *testing.T) {
	ctx := deadline(t)
	first, err := stack.StartRabbit(ctx, t.TempDir(), stack.RabbitOptions{})
	check(t, err)
	t.Cleanup(func() { first.Close() })
	second, err := stack.StartRabbit(ctx, t.TempDir(), stack.RabbitOptions{Join: first})
	check(t, err)
	t.Cleanup(func() { second.Close() })

	ch := channel(t, first)
	_, err = ch.QueueDeclare("q", true, false, false, false, nil)
	check(t, err)
	check(t, ch.Confirm(false))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	check(t, ch.Publish("", "q", false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")}))
	<-confirms
	first.Kill()
	check(t, first.Start(ctx))
	// The second node of the cluster sees the queue on the first.
	d, ok, err := channel(t, second).Get("q", true)
	check(t, err)
	if !ok || string(d.Body) != "x" {
		t.Errorf("after a restart: %q, %v", d.Body, ok)
	}
}

func channel(t *testing.T, r *stack.Rabbit) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(r.URL())
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	check(t, err)
	return ch
}
