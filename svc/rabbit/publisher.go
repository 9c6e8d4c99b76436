package rabbit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/streadway/amqp"
)

// confirmTimeout bounds the wait for a confirm while the broker has not said
// that it is short of memory or disk.
const confirmTimeout = 30 * time.Second

// publisher publishes to a dead queue. One goroutine at a time may use it.
type publisher struct {
	server   Server
	topology Topology
	// onBlocked is called from another goroutine when the broker stops reading,
	// and when it reads again.
	onBlocked func(amqp.Blocking)

	conn      *connection   // nil: none
	ch        *amqp.Channel // nil: none
	closed    chan *amqp.Error
	returned  chan amqp.Return
	confirmed chan amqp.Confirmation
	from      int // the URL to try first
	blocked   atomic.Bool
	listening sync.WaitGroup
}

var (
	errReturned = errors.New("the dead queue is gone")
	errNacked   = errors.New("the broker did not store the message (basic.nack)")
	errSilent   = errors.New("the broker did not confirm in time")
)

// refuses reports whether err is the broker's answer to a message, and not about
// the connection.
func refuses(err error) bool {
	var e *amqp.Error
	return errors.Is(err, errNacked) || errors.Is(err, errReturned) || errors.As(err, &e) && e.Server && e.Code != amqp.ConnectionForced
}

// connect connects if there is no connection.
func (p *publisher) connect(ctx context.Context) error {
	if p.conn != nil && !p.conn.IsClosed() {
		return nil
	}
	p.close()
	// No limit to a write: a broker under an alarm does not read. See publish.
	conn, err := p.server.dial(ctx, p.topology.DeadQueue()+" publisher", 0, p.from)
	if err != nil {
		return err
	}
	p.conn = conn
	blockings := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	p.listening.Go(func() { p.listen(blockings) })
	return nil
}

// close closes the connection. The next one is to another broker, if there are
// several.
func (p *publisher) close() {
	if p.conn != nil {
		p.from = p.conn.next
		p.conn.close()
		p.listening.Wait()
	}
	p.conn, p.ch = nil, nil
}

// listen notes whether the broker reads, until the connection ends.
func (p *publisher) listen(blockings <-chan amqp.Blocking) {
	for b := range blockings {
		p.blocked.Store(b.Active)
		p.onBlocked(b)
	}
	p.blocked.Store(false)
}

// publish publishes, over a new connection if there is none, and returns the
// broker's answer. It ends the connection when the broker is silent. When ctx
// ends it still waits up to CloseTimeout for the confirm of a message that is on
// its way: that message would be delivered again, and stored twice.
func (p *publisher) publish(ctx context.Context, msg amqp.Publishing) error {
	if err := p.connect(ctx); err != nil {
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- p.send(msg) }()
	for {
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			defer p.conn.closeSoon().Stop()
			return <-answer
		case <-time.After(confirmTimeout):
			if p.blocked.Load() {
				continue
			}
			p.conn.raw.Close()
			if <-answer == nil {
				return nil
			}
			return errSilent
		}
	}
}

// send publishes and waits for the broker's answer. A channel is used until one
// is an error.
func (p *publisher) send(msg amqp.Publishing) (err error) {
	if p.ch == nil {
		if err := p.openChannel(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			p.ch.Close()
			p.ch = nil
		}
	}()
	if err := p.ch.Publish("", p.topology.DeadQueue(), true, false, trimHeaders(msg, p.conn.Config.FrameSize)); err != nil {
		return fmt.Errorf("publish to %s: %w", p.topology.DeadQueue(), err)
	}
	confirm, ok := <-p.confirmed
	if !ok { // the channel is closed
		if err, ok := <-p.closed; ok {
			return err
		}
		return amqp.ErrClosed
	}
	select {
	case <-p.returned: // the broker sends it before the confirm
		return errReturned
	default:
	}
	if !confirm.Ack {
		return errNacked
	}
	return nil
}

// openChannel opens a channel. It declares the dead queue each time, which may
// have been deleted. All that the library tells of one message fits into the
// buffers, so nothing has to receive it in between.
func (p *publisher) openChannel() error {
	ch, err := p.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := p.topology.declareQueue(ch, p.topology.DeadQueue()); err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	p.ch = ch
	p.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	p.returned = ch.NotifyReturn(make(chan amqp.Return, 1))
	p.confirmed = ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	return nil
}
