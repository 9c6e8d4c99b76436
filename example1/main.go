// Command example1 is a bare-bones producer and consumer: the minimum of reliable messaging.
//
//	go run ./example1
//
// It publishes a new_order event with a fresh id every 5 seconds, waits for the broker's confirm, and prints and
// acknowledges what arrives in its queue, my-queue. AMQP_URL is the broker, amqp://guest:guest@localhost:5672/ by default.
// Services that run get its events, too. The queue is durable and remains: it collects all later events until it is
// deleted (rabbitmqctl delete_queue my-queue).
//
// Left out, and what ../svc is for: reconnecting (a broker that goes away, or is not there yet, ends the program);
// deduplication (an event published or delivered twice is printed twice); retries and dead letters (printing cannot
// fail, so every event is acknowledged, whatever is in it).
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/streadway/amqp"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "example1:", err)
		os.Exit(1)
	}
}

func run() error {
	conn, err := amqp.Dial(cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672/"))
	if err != nil {
		return fmt.Errorf("connect to the broker in AMQP_URL (is it up? docker compose up -d rabbitmq): %w", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 1)) // buffered: the library blocks if nothing receives
	deliveries, err := setUp(ch)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second ctrl-c does not wait for the broker

	consumed := make(chan error, 1)
	go func() { consumed <- consume(deliveries) }()
	if err := produce(ctx, ch, confirms); err != nil {
		return err
	}
	if err := ch.Cancel("example1", false); err != nil { // the broker sends no more, and deliveries is closed
		return fmt.Errorf("stop consuming: %w", err)
	}
	return <-consumed
}

// setUp makes the exchange and the queue, which changes nothing when they are there, and starts consuming.
func setUp(ch *amqp.Channel) (<-chan amqp.Delivery, error) {
	_, err := ch.QueueDeclare("my-queue", true, false, false, false, nil)
	err = cmp.Or(err,
		ch.ExchangeDeclare("events", amqp.ExchangeTopic, true, false, false, false, nil),
		ch.QueueBind("my-queue", "#", "events", false, nil),
		ch.Confirm(false),
		ch.Qos(10, 0, false)) // without a prefetch the broker sends the whole queue at once
	if err != nil {
		return nil, err
	}
	return ch.Consume("my-queue", "example1", false, false, false, false, nil)
}

// produce publishes an event at once and then every 5 s, until ctx is done.
func produce(ctx context.Context, ch *amqp.Channel, confirms <-chan amqp.Confirmation) error {
	for tick := time.Tick(5 * time.Second); ; {
		body := fmt.Sprintf(`{"type":"new_order","id":%q,"user_id":%q}`, rand.Text(), rand.Text())
		msg := amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: []byte(body)}
		if err := ch.Publish("events", "new_order", false, false, msg); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		select { // confirmed: the broker has it on disk, in every queue that is bound to the exchange
		case c := <-confirms:
			if !c.Ack {
				return errors.New("not confirmed: the event may or may not be published")
			}
			fmt.Println("published", body)
		case <-time.After(10 * time.Second):
			return errors.New("no confirm within 10s: is the broker out of memory or disk?")
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

func consume(deliveries <-chan amqp.Delivery) error {
	for d := range deliveries {
		fmt.Printf("consumed  %s\n", d.Body)
		if err := d.Ack(false); err != nil { // last of all: after a crash before this the event comes again
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
	return nil
}
