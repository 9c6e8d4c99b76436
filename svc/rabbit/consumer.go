package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// maxDenials is how many denials in a row make Run give up: users and virtual
// hosts may be created after the broker has started.
const maxDenials = 5

// Consumer brings the deliveries of one queue to Handle. Set all fields.
type Consumer struct {
	Server   Server
	Topology Topology
	Status   Status
	Log      *slog.Logger

	Prefetch    int // deliveries that the broker sends before their acknowledgement
	MaxInFlight int // deliveries handled at once

	// Handle is called in a goroutine of its own for each delivery. Its context
	// ends when the delivery's channel is gone, and when Run's does.
	Handle func(context.Context, consume.Delivery)

	deadLetters *deadLetters

	handling  sync.WaitGroup // handlers
	semaphore chan struct{}
	consumed  bool   // ever
	from      int    // the URL to try first
	oneByOne  int    // deliveries to take one at a time, see consumeOnce
	logged    string // the error that was logged last, without numbers; "": it has consumed since
	wait      *backoff.ExponentialBackOff
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

// Run consumes until ctx ends; then it returns nil when all handlers have
// returned and the finished deliveries are acknowledged. It returns an error
// only before it has ever consumed and when retrying cannot help: the broker
// denies access, or something exists with other arguments. Hint says how to fix
// it.
func (c *Consumer) Run(ctx context.Context) error {
	c.deadLetters = newDeadLetters(c)
	defer c.deadLetters.disconnect()
	c.semaphore = make(chan struct{}, c.MaxInFlight)
	defer c.handling.Wait()
	c.wait = newBackoff(minPause, maxPause)
	for denials := 0; ; {
		err := c.consumeOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errPastUnreadable) {
			continue
		}
		c.Status.Set(PartBroker, err)
		c.Status.Set(PartConsumer, err)
		if denied(err) {
			denials++
		} else {
			denials = 0
		}
		switch {
		case c.consumed:
		case errors.Is(err, errMismatch):
			return err
		case denials == maxDenials:
			return fmt.Errorf("the broker refused %d times in a row: %w", denials, err)
		}
		pause := c.wait.NextBackOff()
		level, text := slog.LevelWarn, numbers.ReplaceAllString(err.Error(), "")
		if text == c.logged {
			level = slog.LevelDebug
		}
		c.logged = text
		c.Log.Log(ctx, level, "not consuming", "error", err, "retry_in", pause.Round(time.Millisecond), "hint", Hint(err))
		sleep(ctx, pause)
	}
}

// numbers matches what may differ between two errors of one cause, such as local ports.
var numbers = regexp.MustCompile(`[0-9]+`)

// The pauses between connections.
const minPause, maxPause = 100 * time.Millisecond, 3 * time.Second

func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: first, Multiplier: 2, MaxInterval: most, RandomizationFactor: 0.5}
}

// sleep waits for d. It returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
