// Command example1 is a bare-bones producer and consumer: what reliable messaging starts from, and stops short of.
//
// It publishes a new_order event with a fresh id every 5 seconds, waits for the broker's confirm, and prints and
// acknowledges what arrives in a queue of its own. AMQP_URL is the broker, amqp://guest:guest@localhost:5672/ by default.
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
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/streadway/amqp"
)

const exchange, queue, consumer = "events", "my-queue", "example1"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "example1:", err)
		os.Exit(1)
	}
}

func run() error {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672/")
	broker, err := amqp.ParseURI(url)
	if err != nil {
		return errors.New("AMQP_URL must be like amqp://user:password@host:5672/") // err may show the password
	}
	var tcp net.Conn
	conn, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat: 10 * time.Second,
		Dial: func(network, addr string) (_ net.Conn, err error) {
			tcp, err = amqp.DefaultDial(10*time.Second)(network, addr)
			return tcp, err
		},
	})
	if err != nil {
		return fmt.Errorf("connect to RabbitMQ at %s:%d: %w", broker.Host, broker.Port, err)
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	// The library sends on both while it holds a lock. There is never more than one confirm or close on its way, so
	// with room for one it cannot get stuck.
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	deliveries, err := setUp(ch)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for d := range deliveries { // ends when deliveries is closed
			fmt.Printf("consumed  %s\n", d.Body)
			if err := d.Ack(false); err != nil { // last of all: after a crash before this the event comes again
				fmt.Fprintln(os.Stderr, "example1: not acknowledged, so it will come again:", err)
			}
		}
	}()

	err = produce(ctx, ch, confirms, consumed)
	if err != nil && len(closed) > 0 {
		err = fmt.Errorf("%w: %w", err, <-closed)
	}
	// A broker that has run out of memory or disk reads nothing from who publishes, not even a goodbye.
	defer time.AfterFunc(5*time.Second, func() { tcp.Close() }).Stop()
	if err == nil {
		// Cancelled, the broker sends no more, and deliveries is closed behind what had arrived by then.
		if err = ch.Cancel(consumer, false); err == nil {
			<-consumed
		}
	}
	conn.Close() // closes deliveries, if nothing has yet
	<-consumed
	return err
}

// setUp makes the exchange and the queue, which changes nothing when they are there, and starts consuming.
func setUp(ch *amqp.Channel) (<-chan amqp.Delivery, error) {
	err := ch.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	if err == nil {
		_, err = ch.QueueDeclare(queue, true, false, false, false, nil)
	}
	if err == nil {
		err = ch.QueueBind(queue, "#", exchange, false, nil)
	}
	if err == nil {
		err = ch.Confirm(false)
	}
	if err == nil {
		err = ch.Qos(10, 0, false) // without a prefetch the broker sends the whole queue at once
	}
	if err != nil {
		return nil, err
	}
	return ch.Consume(queue, consumer, false, false, false, false, nil)
}

// produce publishes an event at once and then every 5 s, until ctx is done or consuming has ended. It returns nil only
// when all it published is confirmed, which is when the broker has it on disk in every queue bound to the exchange.
func produce(ctx context.Context, ch *amqp.Channel, confirms <-chan amqp.Confirmation, consumed <-chan struct{}) error {
	for tick := time.Tick(5 * time.Second); ; {
		body := fmt.Sprintf(`{"type":"new_order","id":%q,"user_id":%q}`, rand.Text(), rand.Text())
		msg := amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: []byte(body)}
		if err := ch.Publish(exchange, "new_order", false, false, msg); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		select {
		case c, ok := <-confirms:
			if !ok || !c.Ack {
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
		case <-consumed:
			return errors.New("the broker ended the consumer")
		}
	}
}
