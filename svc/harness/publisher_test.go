package harness

import (
	"path/filepath"
	"testing"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
)

// A publisher notices that the broker is killed, and publishes again until the
// broker, restarted, has confirmed everything.
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
	ready := func(queue string, least int64) {
		t.Helper()
		n, err := p.Ready(queue)
		check(err)
		if n < least {
			t.Errorf("%s has %d messages, want at least %d", queue, n, least)
		}
	}

	check(p.Open())
	check(p.channel.ExchangeDeclare("events", "topic", true, false, false, false, nil))
	_, err = p.channel.QueueDeclare("queue", true, false, false, false, nil)
	check(err)
	check(p.channel.QueueBind("queue", "#", "events", false, nil))
	check(p.Publish(ctx, Message("1"), Message("2")))
	ready("queue", 2)
	ready("no-such-queue", 0)
	check(p.Open()) // the broker has closed the channel
	d, _, err := p.channel.Get("queue", true)
	check(err)
	if d.RoutingKey != "foo" || d.AppId != "plumber" || d.DeliveryMode != amqp.Persistent || string(d.Body) != "1" {
		t.Errorf("the message is %+v", d)
	}

	check(rabbit.Kill())
	if err := p.Publish(ctx, Message("3")); err == nil {
		t.Error("published without a broker")
	}
	published := make(chan error, 1)
	go func() { published <- p.PublishUntilConfirmed(ctx, Message("3"), Message("4")) }()
	check(rabbit.Start(ctx))
	check(<-published)
	ready("queue", 3)
}
