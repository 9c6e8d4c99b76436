package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// Config says what Consume does. Set all fields but Consumers.
type Config struct {
	Server   Server
	Topology Topology
	Status   Status
	Log      *slog.Logger

	// Low and Prefetch are how many deliveries the broker sends before their
	// acknowledgement: Low until these are finished in half a second, and when Slow says so.
	Low, Prefetch int
	Slow          func() bool
	MaxInFlight   int // deliveries handled at once
	// OneFirst says that a delivery may end the process: each channel begins with one, and
	// with one at a time while each has come back often.
	OneFirst bool

	// Consumers, if set, is told every few seconds how many consumers the queue has.
	Consumers func(n int)

	// Handle is called in a goroutine of its own for each delivery. Its context
	// ends when the delivery's channel is gone, and when Consume's does.
	Handle func(context.Context, consume.Delivery)
}

// Status is told whether the consumer has a connection (PartBroker), whether it
// consumes (PartConsumer), and whether dead letters can be stored (PartDeadLetters).
type Status interface {
	Set(part string, err error)
}

// The parts that a Status is told of.
const (
	PartBroker      = "broker"
	PartConsumer    = "consumer"
	PartDeadLetters = "dead_letters"
)

// consumer is one run of Consume.
type consumer struct {
	Config
	publisher *publisher
	outage    *outage.Log    // while it does not consume
	unbound   *outage.Log    // while the user may not bind the queue
	handling  sync.WaitGroup // handlers
	semaphore chan struct{}  // a slot for each delivery that is handled

	// Owned by the goroutine that consumes:
	consumed  bool // ever
	denials   int  // in a row
	oneByOne  int  // deliveries to take one at a time, see use
	consumers int  // of the broker, until now
}

// Consume consumes a queue until ctx ends; then it returns nil when all handlers have
// returned and the finished deliveries are acknowledged. It returns an error only before it
// has ever consumed and when retrying cannot help: the broker denies access, or the
// queue has another type. Hint says how to fix it.
func Consume(ctx context.Context, cfg Config) error {
	c := &consumer{
		Config: cfg, publisher: newPublisher(cfg), semaphore: make(chan struct{}, cfg.MaxInFlight),
		outage: &outage.Log{Logger: cfg.Log, Level: slog.LevelWarn, Begins: "not consuming"},
		unbound: &outage.Log{Logger: cfg.Log, Level: slog.LevelWarn,
			Begins: "the user may not bind the queue: new events arrive only if it is bound", Ends: "the queue is bound"},
	}
	ctx, end := context.WithCancel(ctx)
	var publishing sync.WaitGroup
	publishing.Go(func() { c.publisher.run(ctx) })
	defer publishing.Wait()
	defer end()
	defer c.handling.Wait()
	name := cfg.Topology.Queue + " consumer"
	return cfg.Server.serve(ctx, link{name, 10 * time.Second, c.outage, c.failed}, c.use)
}

// maxDenials is how many denials in a row make Consume give up: users and virtual
// hosts may be created after the broker has started.
const maxDenials = 5

// failed notes why nothing is consumed. It returns an error if retrying cannot help.
func (c *consumer) failed(err error) error {
	c.Status.Set(PartBroker, err)
	c.Status.Set(PartConsumer, err)
	if denied(err) {
		c.denials++
	} else {
		c.denials = 0
	}
	switch {
	case c.consumed:
	case errors.Is(err, errOtherType):
		return err
	case c.denials == maxDenials:
		return fmt.Errorf("the broker refused %d times in a row: %w", maxDenials, err)
	}
	return nil
}
