package stack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

func channel(t *testing.T, conn *amqp.Connection, err error) *amqp.Channel {
	t.Helper()
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	check(t, err)
	return ch
}

// publish puts a persistent message on a durable queue and waits for the confirm.
func publish(t *testing.T, ch *amqp.Channel, queue, body string) {
	t.Helper()
	_, err := ch.QueueDeclare(queue, true, false, false, false, nil)
	check(t, err)
	check(t, ch.Confirm(false))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	check(t, ch.Publish("", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)}))
	if c := <-confirms; !c.Ack {
		t.Fatal("not confirmed")
	}
}

func wantMessage(t *testing.T, ch *amqp.Channel, queue, body string) {
	t.Helper()
	d, ok, err := ch.Get(queue, true)
	check(t, err)
	if !ok || string(d.Body) != body {
		t.Errorf("the queue has %q (%v), want %q", d.Body, ok, body)
	}
}

// A message that RabbitMQ has confirmed survives a kill. (The tests are parallel, so
// several nodes run at the same time.)
func TestRabbit(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	r, err := stack.StartRabbit(ctx, t.TempDir(), stack.RabbitOptions{})
	check(t, err)
	closeAtEnd(t, r)
	conn, err := amqp.Dial(r.URL())
	publish(t, channel(t, conn, err), "q", "x")

	check(t, r.Pause())
	raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.Port())) // the kernel accepts
	check(t, err)
	defer raw.Close()
	_, err = raw.Write([]byte("AMQP\x00\x00\x09\x01"))
	check(t, err)
	check(t, raw.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if _, err := raw.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a paused node answers: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := r.Ctl(short, "list_queues"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("rabbitmqctl ignores the end of its context: %v", err)
	}
	check(t, r.Resume())
	check(t, raw.SetReadDeadline(time.Now().Add(maxWait)))
	_, err = raw.Read(make([]byte, 1))
	check(t, err)

	if queues, err := r.Queues(ctx, "messages"); err != nil || len(queues) != 1 || queues["q"] != "1" {
		t.Errorf("the queues are %v, %v", queues, err)
	}
	if _, err := r.Ctl(ctx, "no_such_command"); err == nil {
		t.Error("rabbitmqctl accepts no_such_command")
	}

	check(t, r.Kill())
	if _, err := amqp.Dial(r.URL()); err == nil {
		t.Error("a killed node answers")
	}
	check(t, r.Start(ctx))
	conn, err = amqp.Dial(r.URL())
	wantMessage(t, channel(t, conn, err), "q", "x")
	check(t, r.Stop(ctx))
}

// A node starts with every option, and another node joins it.
func TestRabbitOptions(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	files := makeCertificates(t)
	first, err := stack.StartRabbit(ctx, t.TempDir(), stack.RabbitOptions{
		Management: true,
		Cert:       files.cert, Key: files.key, CACert: files.ca,
		Config: "channel_max = 7\n",
	})
	check(t, err)
	closeAtEnd(t, first)
	conn, err := amqp.DialTLS(first.TLSURL(), files.client)
	publish(t, channel(t, conn, err), "q", "x")
	if conn.Config.ChannelMax != 7 {
		t.Errorf("channel_max is %d, want 7 from Config", conn.Config.ChannelMax)
	}

	req, err := http.NewRequestWithContext(ctx, "GET", first.ManagementURL()+"/api/queues/%2F/q", nil)
	check(t, err)
	req.SetBasicAuth("guest", "guest")
	resp, err := new(http.Transport).RoundTrip(req)
	check(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("management: %s", resp.Status)
	}

	second, err := stack.StartRabbit(ctx, t.TempDir(), stack.RabbitOptions{Join: first})
	check(t, err)
	closeAtEnd(t, second)
	conn, err = amqp.Dial(second.URL())
	wantMessage(t, channel(t, conn, err), "q", "x")
}

// A start whose context ends leaves no files.
func TestRabbitStartCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(deadline(t))
	cancel()
	dir := filepath.Join(t.TempDir(), "rabbit")
	if _, err := stack.StartRabbit(ctx, dir, stack.RabbitOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder still exists: %v", err)
	}
}
