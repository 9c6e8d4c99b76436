package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// breakSomething draws one fault, or two of different domains that overlap, and returns
// when they are repaired.
func (c *chaos) breakSomething(draw *rand.Rand) {
	c.t.Helper()
	if len(c.deck) < 2 {
		c.deck = append(c.deck, draw.Perm(len(c.faults))...)
	}
	faults := []fault{c.faults[c.deck[0]]}
	if second := c.faults[c.deck[1]]; draw.IntN(3) == 0 && second.domain != faults[0].domain {
		faults = append(faults, second)
	}
	c.deck = c.deck[len(faults):]
	delay := time.Duration(draw.IntN(500)) * time.Millisecond // between the two faults
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	var group errgroup.Group
	for i, f := range faults {
		c.drawn[f.name]++
		group.Go(func() error {
			<-time.After(time.Duration(i) * delay)
			if err := f.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		c.t.Fatal(err)
	}
}

// replace ends a replica and starts another in its place.
func (c *chaos) replace(i int, reason string, end func(*service)) error {
	asked := time.Now()
	end(c.replicas[i])
	if _, unreachable := c.etcdUnreachable(asked); reason != "" || unreachable {
		c.allowDuplicates(cmp.Or(reason, "a replica stopped"), asked, time.Now(), chaosWorkers)
	}
	next := c.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+c.receiver.URL,
		"LOG_LEVEL=debug", fmt.Sprint("CLAIM_TTL=", chaosTTL), fmt.Sprint("PREFETCH=", chaosHeld), fmt.Sprint("CONCURRENCY=", chaosWorkers))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, c.replicas[i])
	c.replicas[i] = next
	return nil
}

// etcdUnreachable reports whether etcd was unreachable at that time or later, and since when.
func (c *chaos) etcdUnreachable(at time.Time) (since time.Time, was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.etcdFrom, !c.etcdFrom.IsZero() && (c.etcdTo.IsZero() || c.etcdTo.After(at))
}

func (c *chaos) terminate(s *service) {
	s.signal(syscall.SIGTERM)
	<-s.exited
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Errorf("%s: exit status %d after TERM", s.name, code)
	}
}

// freeze pauses a replica for longer than CLAIM_TTL.
func (c *chaos) freeze(context.Context) error {
	from := time.Now()
	c.replicas[1].signal(syscall.SIGSTOP)
	<-time.After(longOutage)
	c.replicas[1].signal(syscall.SIGCONT)
	c.allowDuplicates("a replica was frozen for longer than CLAIM_TTL", from, time.Now().Add(2*time.Second), 2*chaosHeld)
	return nil
}

// losePackets drops the broker's packets until a replica has missed its heartbeats, or
// has been ended by another fault.
func (c *chaos) losePackets(context.Context) error {
	c.mu.Lock()
	s := c.replicas[0]
	c.mu.Unlock()
	before := s.log.count("connecting again", "consumer")
	c.toRabbit.blackhole()
	_, err := s.log.wait(maxWait, before+1, []string{"connecting again", "consumer"})
	if err != nil {
		select {
		case <-s.exited:
			err = nil
		case <-time.After(time.Second): // its log ends before it has exited
		}
	}
	c.toRabbit.restore()
	c.toRabbit.cut()
	return errors.Join(err, c.toRabbit.reopen())
}

func (c *chaos) pauseEtcd(d time.Duration) func(context.Context) error {
	return func(context.Context) error {
		if err := c.etcdServer.Pause(); err != nil {
			return err
		}
		<-time.After(d)
		return c.etcdServer.Resume()
	}
}

func (c *chaos) cutEtcd(d time.Duration) func(context.Context) error {
	return func(context.Context) error {
		c.toEtcd.cut()
		<-time.After(d)
		return c.toEtcd.reopen()
	}
}

// outage wraps a fault of etcd, during which nothing can be recorded.
func (c *chaos) outage(longerThanTTL bool, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		from := time.Now()
		c.mu.Lock()
		c.etcdFrom, c.etcdTo = from, time.Time{}
		c.mu.Unlock()
		err := run(ctx)
		to := time.Now().Add(2 * time.Second) // until the replicas notice the end
		c.mu.Lock()
		c.etcdTo = to
		if longerThanTTL {
			// All ids that either replica had claimed may be done again.
			c.windows = append(c.windows, window{"etcd was unreachable for longer than CLAIM_TTL", from.Add(-time.Second), to, 4 * chaosHeld, 0})
		}
		c.mu.Unlock()
		return err
	}
}

func (c *chaos) refuse(context.Context) error {
	c.webhookDown.Store(true)
	<-time.After(2 * time.Second)
	c.webhookDown.Store(false)
	return nil
}

// loseAnswers loses the answers to 30 posts.
func (c *chaos) loseAnswers(ctx context.Context) error {
	const answers = 30
	unanswered := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.unanswered)
	}
	before := unanswered()
	c.silent.Store(true)
	defer c.silent.Store(false)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for unanswered() < before+answers {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
