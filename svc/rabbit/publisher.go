package rabbit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/outage"
)

// confirmTimeout bounds the wait for a confirm while the broker has not said
// that it is short of memory or disk.
const confirmTimeout = 30 * time.Second

// publisher publishes to one queue, many messages at once, until its
// connection fails. A new one is made then.
type publisher struct {
	conn  *connection
	ch    *amqp.Channel
	queue string
	away  *outage.Log
	done  chan struct{} // closed when its listener has ended

	publishing sync.Mutex // keeps the order of the messages that of their numbers

	mu      sync.Mutex
	number  uint64                // of the message published last
	waiting map[uint64]chan error // by number
	failed  error
	nacked  bool          // the broker could not store a message
	blocked chan struct{} // nil: the broker takes messages; closed when it does again
}

// newPublisher takes over the connection.
func newPublisher(conn *connection, ch *amqp.Channel, queue string, away *outage.Log) *publisher {
	p := &publisher{conn: conn, ch: ch, queue: queue, away: away, done: make(chan struct{}), waiting: make(map[uint64]chan error)}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	// Not buffered: the broker returns a message before it confirms it, and
	// the two must be seen in that order.
	returned := ch.NotifyReturn(make(chan amqp.Return))
	confirmed := ch.NotifyPublish(make(chan amqp.Confirmation))
	go p.listen(closed, blocked, returned, confirmed)
	return p
}

// listen hears all that the library tells, until it closes its channels. It
// waits for nothing else: the library tells under its locks.
func (p *publisher) listen(closed <-chan *amqp.Error, blocked <-chan amqp.Blocking, returned <-chan amqp.Return, confirmed <-chan amqp.Confirmation) {
	defer close(p.done)
	for closed != nil || blocked != nil || returned != nil || confirmed != nil {
		select {
		case err, ok := <-closed:
			if ok {
				p.fail(err)
			} else {
				p.fail(errClosed)
				closed = nil
			}
		case b, ok := <-blocked:
			if !ok {
				blocked = nil
			}
			p.block(ok && b.Active, b.Reason)
		case _, ok := <-returned:
			if ok {
				// Which message it was cannot be told. All that wait were for
				// the same queue: all are published again.
				p.fail(errReturned)
			} else {
				returned = nil
			}
		case c, ok := <-confirmed:
			if ok {
				p.confirm(c)
			} else {
				confirmed = nil
			}
		}
	}
}

// err says why to publish elsewhere. A broker that has refused a message may be
// cut off from those that would store it; what it may still confirm is waited
// for, or it would be published twice.
func (p *publisher) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil && p.nacked && len(p.waiting) == 0 {
		return errNacked
	}
	return p.failed
}

// fail ends the publisher: whatever is not confirmed yet has failed.
func (p *publisher) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = err
	}
	for _, answer := range p.waiting {
		answer <- p.failed
	}
	clear(p.waiting)
}

func (p *publisher) confirm(c amqp.Confirmation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer, ok := p.waiting[c.DeliveryTag]; ok {
		delete(p.waiting, c.DeliveryTag)
		if c.Ack {
			answer <- nil
		} else {
			p.nacked = true
			answer <- errNacked
		}
	}
}

func (p *publisher) block(active bool, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case active && p.blocked == nil:
		p.away.Failed(time.Now(), fmt.Errorf("the broker takes no messages: %s", reason), "")
		p.blocked = make(chan struct{})
	case !active && p.blocked != nil:
		close(p.blocked)
		p.blocked = nil
	}
}

// admit waits until the broker takes messages: what it does not read would
// fill the socket.
func (p *publisher) admit(ctx context.Context) error {
	p.mu.Lock()
	blocked := p.blocked
	p.mu.Unlock()
	if blocked == nil {
		return nil
	}
	select {
	case <-blocked:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// publish returns when the message is confirmed.
func (p *publisher) publish(ctx context.Context, msg amqp.Publishing) error {
	if err := p.admit(ctx); err != nil {
		return err
	}
	answer, err := p.send(msg)
	if err != nil {
		return err
	}
	timeout := time.NewTimer(confirmTimeout)
	defer timeout.Stop()
	for {
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			p.mu.Lock()
			blocked := p.blocked
			p.mu.Unlock()
			if blocked == nil {
				p.fail(errSilent)
				continue
			}
			timeout.Reset(confirmTimeout)
		}
	}
}

// send publishes without waiting. The answer comes when it is known.
func (p *publisher) send(msg amqp.Publishing) (answer chan error, err error) {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	answer = make(chan error, 1)
	p.mu.Lock()
	err = p.failed
	if err == nil {
		p.number++
		p.waiting[p.number] = answer
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := p.ch.Publish("", p.queue, true, false, fit(msg, p.conn.Config.FrameSize)); err != nil {
		p.fail(fmt.Errorf("publish to %s: %w", p.queue, err))
	}
	return answer, nil
}

// close closes the connection and waits for the listener.
func (p *publisher) close() {
	p.conn.close()
	<-p.done
}
