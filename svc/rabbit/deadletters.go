package rabbit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// A message that the broker refuses is tried again after minRefusedWait at first, and
// after maxRefusedWait in the end.
const minRefusedWait, maxRefusedWait = time.Second, 30 * time.Second

// deadLetters publishes to a role's dead queue, one message at a time: what the
// broker answers is about that message and no other. One that it refuses is
// tried again later and does not hold up those behind it.
//
// Its connection is opened when it is first needed and is not the consumer's:
// while the broker is short of memory or disk it stops reading from connections
// that publish, and acknowledgements must still get through.
type deadLetters struct {
	consumer *Consumer // for its configuration
	queue    string    // the dead queue
	outage   *outage.Log

	turn      chan struct{} // held while using the following
	conn      *connection   // nil: none
	from      int           // the URL to try first
	ch        *amqp.Channel // nil: none
	closed    chan *amqp.Error
	returned  chan amqp.Return
	confirmed chan amqp.Confirmation
	wait      *backoff.ExponentialBackOff

	listening sync.WaitGroup
	blocked   atomic.Bool // by the broker, which does not read

	mu      sync.Mutex
	refused int   // messages that wait because the broker refuses them
	last    error // the last refusal
	down    error // why nothing can be published; nil: it can, or nothing has to be
}

func newDeadLetters(c *Consumer) *deadLetters {
	return &deadLetters{
		consumer: c, queue: c.Topology.deadQueue(), outage: &outage.Log{
			Logger: c.Log, Level: slog.LevelWarn,
			Begins: "the dead queue is unreachable: dead letters wait unacknowledged", Ends: "the dead queue is reachable again",
		},
		turn: make(chan struct{}, 1), wait: newBackoff(minPause, maxPause),
	}
}

// publish returns when the broker has confirmed that the message is in the dead
// queue. It fails only when ctx ends.
func (d *deadLetters) publish(ctx context.Context, msg amqp.Publishing) error {
	// One of several brokers may be cut off from those that would store the
	// message, so each gets to answer once.
	err := d.publishInTurn(ctx, msg, len(d.consumer.Server.URLs)-1)
	if err == nil || ctx.Err() != nil {
		return err
	}
	e, _ := event.Parse(msg.Body) // no id if that is why it is dead
	d.consumer.Log.Warn("the broker refuses a dead letter: it waits unacknowledged",
		"id", e.ID, "reason", msg.Headers["x-reason"], "error", err, "hint", Hint(err))
	d.addRefused(1, err)
	defer d.addRefused(-1, err)
	wait := newBackoff(minRefusedWait, maxRefusedWait)
	for sleep(ctx, wait.NextBackOff()) {
		if err := d.publishInTurn(ctx, msg, 0); err == nil {
			return nil
		}
	}
	return context.Cause(ctx)
}

// publishInTurn publishes while no other message is being published. It waits for a
// connection, and returns when a broker has stored the message, when others+1 brokers have
// refused it, or when ctx ends.
func (d *deadLetters) publishInTurn(ctx context.Context, msg amqp.Publishing, others int) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer d.setDown(nil)
	for ctx.Err() == nil {
		err := d.publishOnce(ctx, msg)
		switch {
		case refuses(err) && others > 0:
			others--
			d.disconnect() // the next connection is to another broker
		case err == nil || refuses(err):
			d.wait.Reset()
			d.outage.Answered(time.Now())
			return err
		case ctx.Err() == nil:
			d.setDown(err)
			if len(d.consumer.Server.URLs) > 1 { // another broker may have a dead queue
				d.disconnect()
			}
			sleep(ctx, d.wait.NextBackOff())
		}
	}
	return fmt.Errorf("dead-letter to %s: %w", d.queue, context.Cause(ctx))
}

// addRefused counts the messages that wait because the broker refuses them.
func (d *deadLetters) addRefused(n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused += n
	if n > 0 {
		d.last = err
	}
	d.report()
	if n > 0 && d.refused == min(d.consumer.Prefetch, d.consumer.MaxInFlight) {
		d.consumer.Log.Warn("no events are delivered: the broker refuses the dead letters of all deliveries that are handled at once",
			"refused", d.refused, "hint", "see the refused dead letters for the cause; a higher PREFETCH, or a CONCURRENCY above 1, lets events through until then")
	}
}

// setDown notes why nothing can be published.
func (d *deadLetters) setDown(err error) {
	if err != nil {
		d.outage.Failed(time.Now(), err, Hint(err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
	d.report()
}

// report tells the status. mu is held.
func (d *deadLetters) report() {
	err := d.down
	if err == nil && d.refused > 0 {
		err = fmt.Errorf("the broker refuses %d dead letters: %w", d.refused, d.last)
	}
	d.consumer.Status.Set(PartDeadLetters, err)
}
