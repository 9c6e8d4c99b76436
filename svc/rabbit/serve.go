package rabbit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// link says how to serve a connection.
type link struct {
	name         string        // of the connection, at the broker
	writeTimeout time.Duration // of one write to the socket; 0: none
	outage       *outage.Log   // serve notes failures, and its caller what was answered
	// failed is told of each failure. An error that it returns ends serve.
	failed func(error) error
}

// errAtOnce ends the use of a connection that has not failed: the next URL is tried at once.
var errAtOnce = errors.New("to be connected again at once")

// The pauses between connections, and how long a connection has to last for the next pause to
// be the shortest, if it did not serve.
const (
	minPause, maxPause = 100 * time.Millisecond, 3 * time.Second
	stable             = 10 * time.Second
)

// serve connects to the broker and calls use with the connection, which it closes when use
// returns. It does so again, after a pause, until use returns nil or ctx ends; then it
// returns nil.
func (s Server) serve(ctx context.Context, l link, use func(context.Context, *connection) error) error {
	wait, from := newBackoff(minPause, maxPause), 0
	for {
		conn, err := s.dial(ctx, l.name, l.writeTimeout, from)
		if err == nil {
			began := time.Now()
			err = use(ctx, conn)
			conn.close()
			from = conn.next
			if conn.served || time.Since(began) > stable {
				wait.Reset()
			}
			if err != nil {
				err = fmt.Errorf("the broker at %s: %w", conn.broker, err)
			}
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case errors.Is(err, errAtOnce):
			continue
		}
		if err := l.failed(err); err != nil {
			return err
		}
		pause := wait.NextBackOff()
		retryIn := pause.Round(time.Millisecond)
		l.outage.Failed(time.Now(), err, Hint(err), "retry_in", retryIn)
		l.outage.Logger.Debug("connecting again", "connection", l.name, "error", err, "retry_in", retryIn)
		sleep(ctx, pause)
	}
}

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
