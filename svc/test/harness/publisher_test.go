package harness

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// A publisher does not wait for a broker that hangs longer than it may. It notices that
// the broker is killed, and publishes again until the broker, restarted, has confirmed
// everything.
func TestPublisher(t *testing.T) {
	ctx := timeout(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rabbit, err := stack.StartRabbit(ctx, filepath.Join(t.TempDir(), "rabbitmq"), stack.RabbitOptions{})
	check(err)
	defer rabbit.Close()
	p := Publisher{URL: rabbit.URL()}
	defer p.Close()
	ready := func(least int) {
		t.Helper()
		n, err := p.Ready(ctx, "queue", "no-such-queue", "queue")
		check(err)
		if n < 2*least || n%2 != 0 {
			t.Errorf("twice the queue has %d messages, want at least twice %d", n, least)
		}
	}

	check(p.Open(ctx))
	check(p.channel.ExchangeDeclare("events", "topic", true, false, false, false, nil))
	_, err = p.channel.QueueDeclare("queue", true, false, false, false, nil)
	check(err)
	check(p.channel.QueueBind("queue", "#", "events", false, nil))
	began := time.Now()
	check(p.PublishAt(ctx, 10, Message("1"), Message("2")))
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("two messages at 10 a second took %v", took)
	}
	ready(2)
	d, _, err := p.channel.Get("queue", true)
	check(err)
	if d.RoutingKey != "foo" || d.AppId != "plumber" || d.DeliveryMode != amqp.Persistent || string(d.Body) != "1" {
		t.Errorf("the message is %+v", d)
	}

	// While the broker hangs, each call ends soon after its ctx.
	for name, call := range map[string]func(context.Context) error{
		"Publish":               func(ctx context.Context) error { return p.Publish(ctx, Message("3")) },
		"PublishUntilConfirmed": func(ctx context.Context) error { return p.PublishUntilConfirmed(ctx, Message("3")) },
		"Ready":                 func(ctx context.Context) error { _, err := p.Ready(ctx, "queue"); return err },
	} {
		check(p.Open(ctx))
		check(rabbit.Pause())
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		began := time.Now()
		err := call(short)
		if took := time.Since(began); err == nil || took > 10*time.Second {
			t.Errorf("%s took %v while the broker hung: %v", name, took, err)
		}
		cancel()
		check(rabbit.Resume())
	}

	check(rabbit.Kill())
	if err := p.Publish(ctx, Message("3")); err == nil {
		t.Error("published without a broker")
	}
	published := make(chan error, 1)
	go func() { published <- p.PublishUntilConfirmed(ctx, Message("3"), Message("4")) }()
	check(rabbit.Start(ctx))
	check(<-published)
	ready(3)
}
