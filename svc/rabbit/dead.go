package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// DeadLetters publishes to a role's dead queue on a connection of its own,
// opened when it is needed first: while the broker is short of memory or disk
// it stops reading from connections that publish, and acknowledgements must
// still get through.
type DeadLetters struct {
	server   Server
	topology Topology
	away     *outage.Log
	dialing  chan struct{} // held by the one who reads or writes what follows
	current  *publisher
	from     int // the URL to try first
}

// NewDeadLetters connects to nothing yet.
func NewDeadLetters(server Server, topology Topology, log *slog.Logger) *DeadLetters {
	return &DeadLetters{
		server: server, topology: topology,
		away: outage.New(log, "the dead queue", "dead letters wait unacknowledged"), dialing: make(chan struct{}, 1),
	}
}

// publish returns when the broker has confirmed that the message is in the
// dead queue. It fails only when ctx ends.
func (l *DeadLetters) publish(ctx context.Context, msg amqp.Publishing) error {
	wait := &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 3 * time.Second, RandomizationFactor: 0.5,
	}
	for {
		began := time.Now()
		err := l.try(ctx, msg)
		if err == nil {
			l.away.Answered(time.Now()) // whatever was in its way meanwhile, is not any more
			return nil
		}
		if ctx.Err() == nil {
			l.away.Failed(began, err, mend(err))
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			return fmt.Errorf("%w: dead-letter to %s: %w", context.Cause(ctx), l.topology.DeadQueue(), err)
		}
	}
}

// mend says what to do about an error that does not pass by itself.
func mend(err error) string {
	if refused(err) {
		return checkAccess + ": dead letters go through the exchange amq.default"
	}
	return ""
}

func (l *DeadLetters) try(ctx context.Context, msg amqp.Publishing) error {
	p, err := l.publisher(ctx)
	if err != nil {
		return err
	}
	return p.publish(ctx, msg)
}

// publisher returns the connected publisher, connecting it if there is none.
func (l *DeadLetters) publisher(ctx context.Context) (*publisher, error) {
	select {
	case l.dialing <- struct{}{}:
		defer func() { <-l.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.current != nil {
		if l.current.err() == nil {
			return l.current, nil
		}
		l.from = l.current.conn.next
		l.current.close()
		l.current = nil
	}
	conn, err := l.server.dial(ctx, l.topology.DeadQueue()+" publisher", l.from)
	if err != nil {
		return nil, err
	}
	var ch *amqp.Channel
	if err := conn.within(ctx, func() (err error) {
		ch, err = l.open(conn)
		return err
	}); err != nil {
		l.from = conn.next
		conn.close()
		return nil, fmt.Errorf("the broker at %s: %w", conn.addr, err)
	}
	l.current = newPublisher(conn, ch, l.topology.DeadQueue(), l.away)
	return l.current, nil
}

// open declares the dead queue each time: it may have been deleted.
func (l *DeadLetters) open(conn *connection) (*amqp.Channel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	if err := l.topology.declareQueue(ch, l.topology.DeadQueue()); err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, fmt.Errorf("ask for confirms: %w", err)
	}
	return ch, nil
}

// Close closes the connection. No publish may be under way or follow.
func (l *DeadLetters) Close() {
	if l.current != nil {
		l.current.close()
	}
}

var (
	errReturned = errors.New("the dead queue is gone")
	errNacked   = errors.New("the broker could not store the message")
	errSilent   = errors.New("the broker did not confirm in time")
	errClosed   = errors.New("the connection was closed")
)
