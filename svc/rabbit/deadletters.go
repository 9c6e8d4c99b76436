package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/outage"
)

const (
	// confirmTimeout bounds the wait for a confirm while the broker has not said
	// that it is short of memory or disk.
	confirmTimeout = 30 * time.Second
	// A message that the broker refuses is tried again after minRefused at
	// first, and after maxRefused in the end.
	minRefused, maxRefused = time.Second, 30 * time.Second
)

// DeadLetters publishes to a role's dead queue, one message at a time: what the
// broker answers is about that message and no other. One that it refuses is
// tried again later and does not hold up those behind it.
//
// Its connection is opened when it is first needed and is not the consumer's:
// while the broker is short of memory or disk it stops reading from connections
// that publish, and acknowledgements must still get through.
type DeadLetters struct {
	server   Server
	topology Topology
	prefetch int
	status   Status
	log      *slog.Logger
	outage   *outage.Log

	turn      chan struct{} // held while publishing, which uses the following
	conn      *connection   // nil: none
	ch        *amqp.Channel // nil: none
	closed    chan *amqp.Error
	returned  chan amqp.Return
	confirmed chan amqp.Confirmation
	from      int // the URL to try first
	wait      *backoff.ExponentialBackOff
	listening sync.WaitGroup

	mu      sync.Mutex
	refused int   // messages that wait because the broker refuses them
	last    error // the last refusal
	down    error // why nothing can be published; nil: it can, or nothing has to be
	blocked bool  // the broker does not read
}

// NewDeadLetters connects to nothing yet. prefetch is the consumer's: that many
// refused messages stop it.
func NewDeadLetters(server Server, topology Topology, prefetch int, status Status, log *slog.Logger) *DeadLetters {
	status.Set(PartDeadLetters, nil)
	return &DeadLetters{
		server: server, topology: topology, prefetch: prefetch, status: status, log: log,
		outage: outage.New(log, "the dead queue", "dead letters wait unacknowledged"),
		turn:   make(chan struct{}, 1), wait: newBackoff(),
	}
}

// publish returns when the broker has confirmed that the message is in the dead
// queue. It fails only when ctx ends.
func (d *DeadLetters) publish(ctx context.Context, msg amqp.Publishing) error {
	pace := &backoff.ExponentialBackOff{
		InitialInterval: minRefused, Multiplier: 2, MaxInterval: maxRefused, RandomizationFactor: 0.5,
	}
	// One of several brokers may be cut off from those that would store the
	// message, so each gets to answer once.
	others := len(d.server.URLs) - 1
	for first := true; ; first, others = false, 0 {
		err := d.publishInTurn(ctx, msg, others)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if first {
			d.logRefused(msg, err)
			d.addRefused(1, err)
			defer d.addRefused(-1, err)
		}
		select {
		case <-time.After(pace.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

var (
	errReturned = errors.New("the dead queue is gone")
	errNacked   = errors.New("the broker did not store the message (basic.nack)")
	errSilent   = errors.New("the broker did not confirm in time")
)

// publishInTurn publishes while no other message is being published. It waits
// for a connection, and returns when a broker has stored the message, when it and
// as many others have refused it, or when ctx ends.
func (d *DeadLetters) publishInTurn(ctx context.Context, msg amqp.Publishing, others int) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer d.setDown(nil)
	for returned := false; ctx.Err() == nil; {
		began := time.Now()
		err := d.connect(ctx)
		if err == nil {
			err = d.await(ctx, func() error { return d.send(msg) })
			switch {
			case err == nil:
				d.wait.Reset()
				d.outage.Answered(time.Now())
				return nil
			case errors.Is(err, errReturned) && !returned:
				returned = true // the next channel declares the queue
				continue
			case refuses(err) && others > 0:
				others--
				d.disconnect()
				continue
			case refuses(err):
				d.outage.Answered(time.Now())
				return err
			}
		}
		if ctx.Err() != nil {
			break
		}
		d.outage.Failed(began, err, Hint(err))
		d.setDown(err)
		select {
		case <-time.After(d.wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("dead-letter to %s: %w", d.topology.DeadQueue(), context.Cause(ctx))
}

// refuses reports whether err is the broker's answer to the message, and not
// about the connection.
func refuses(err error) bool {
	var e *amqp.Error
	return errors.Is(err, errNacked) || errors.Is(err, errReturned) || errors.As(err, &e) && e.Server && e.Code != amqp.ConnectionForced
}

// connect connects if there is no connection.
func (d *DeadLetters) connect(ctx context.Context) error {
	if d.conn != nil && !d.conn.IsClosed() {
		return nil
	}
	d.disconnect()
	// No limit to a write: a broker under an alarm does not read. See await.
	conn, err := d.server.dial(ctx, d.topology.DeadQueue()+" publisher", 0, d.from)
	if err != nil {
		return err
	}
	d.conn = conn
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	d.listening.Go(func() { d.listen(blocked) })
	return nil
}

// disconnect closes the connection, and leaves its broker for the next.
func (d *DeadLetters) disconnect() {
	if d.conn != nil {
		d.from = d.conn.next
		d.conn.close()
		d.listening.Wait()
	}
	d.conn, d.ch = nil, nil
}

// Close closes the connection. No publish may be under way or follow.
func (d *DeadLetters) Close() { d.disconnect() }

// listen notes whether the broker reads, until the connection ends.
func (d *DeadLetters) listen(blocked <-chan amqp.Blocking) {
	for b := range blocked {
		var err error
		if b.Active {
			err = fmt.Errorf("the broker takes no messages: %s", b.Reason)
			d.outage.Failed(time.Now(), err, "")
		} else {
			d.outage.Answered(time.Now())
		}
		d.setBlocked(b.Active)
		d.setDown(err)
	}
	d.setBlocked(false)
}

// await runs send and cuts the connection under it when the broker is silent.
// When ctx ends, a message that is on its way may arrive within CloseTimeout: it
// would be stored twice otherwise.
func (d *DeadLetters) await(ctx context.Context, send func() error) error {
	answer := make(chan error, 1)
	go func() { answer <- send() }()
	timeout := time.NewTimer(confirmTimeout)
	defer timeout.Stop()
	ended := ctx.Done()
	for {
		select {
		case err := <-answer:
			return err
		case <-ended:
			ended = nil
			timeout.Reset(d.server.CloseTimeout)
		case <-timeout.C:
			if ended != nil && d.isBlocked() {
				timeout.Reset(confirmTimeout)
				continue
			}
			d.conn.raw.Close()
			if err := <-answer; err == nil {
				return nil
			}
			return errSilent
		}
	}
}

// send publishes and returns the broker's answer.
func (d *DeadLetters) send(msg amqp.Publishing) error {
	if err := d.openChannel(); err != nil {
		return err
	}
	if err := d.ch.Publish("", d.topology.DeadQueue(), true, false, trimHeaders(msg, d.conn.Config.FrameSize)); err != nil {
		d.ch = nil
		return fmt.Errorf("publish to %s: %w", d.topology.DeadQueue(), err)
	}
	confirm, ok := <-d.confirmed
	if !ok { // the channel is closed
		d.ch = nil
		if err, ok := <-d.closed; ok {
			return err
		}
		return amqp.ErrClosed
	}
	select {
	case <-d.returned: // the broker sends it before the confirm
		d.ch.Close()
		d.ch = nil
		return errReturned
	default:
	}
	if !confirm.Ack {
		return errNacked
	}
	return nil
}

// openChannel opens a channel if there is none. It declares the dead queue each
// time, which may have been deleted. All that the library tells of one message
// fits into the buffers, so nothing has to receive it in between.
func (d *DeadLetters) openChannel() error {
	if d.ch != nil {
		return nil
	}
	ch, err := d.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := d.topology.declareQueue(ch, d.topology.DeadQueue()); err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	d.ch = ch
	d.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	d.returned = ch.NotifyReturn(make(chan amqp.Return, 1))
	d.confirmed = ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	return nil
}

// logRefused logs the broker's answer to a message, once for each.
func (d *DeadLetters) logRefused(msg amqp.Publishing, err error) {
	e, _ := event.Parse(msg.Body) // no id if that is why it is dead
	attrs := []any{"id", e.ID, "reason", msg.Headers["x-reason"], "error", err}
	d.log.Warn("the broker refuses a dead letter: it waits unacknowledged", append(attrs, hintAttrs(refusalHint(err))...)...)
}

// refusalHint says what to do about a dead letter that the broker refuses.
func refusalHint(err error) string {
	switch {
	case errors.Is(err, errNacked):
		return "make room in the dead queue, or raise its max-length"
	case denied(err):
		return checkAccess + ": dead letters go through the exchange amq.default"
	}
	return Hint(err)
}

// addRefused counts the messages that wait because the broker refuses them.
func (d *DeadLetters) addRefused(n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused += n
	d.last = err
	d.report()
	if n > 0 && d.refused == d.prefetch {
		d.log.Warn("no events are delivered: the broker refuses the dead letters of all deliveries that it sends at once",
			"prefetch", d.prefetch, "hint", "see the refused dead letters for the cause; a higher PREFETCH lets events through until then")
	}
}

func (d *DeadLetters) setDown(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
	d.report()
}

// report tells the status. mu is held.
func (d *DeadLetters) report() {
	err := d.down
	if err == nil && d.refused > 0 {
		err = fmt.Errorf("the broker refuses %d dead letters: %w", d.refused, d.last)
	}
	d.status.Set(PartDeadLetters, err)
}

func (d *DeadLetters) setBlocked(blocked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blocked = blocked
}

func (d *DeadLetters) isBlocked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blocked
}
