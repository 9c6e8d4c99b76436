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
	ctx := deadline(c.t)
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
	must(c.t, group.Wait())
}

// replace ends a replica and starts another in its place.
func (c *chaos) replace(i int, reason string, end func(*service)) error {
	asked := time.Now()
	end(c.replicas[i])
	if _, unreachable := c.etcdUnreachable(asked); reason != "" || unreachable {
		c.allowDuplicates(cmp.Or(reason, "a replica stopped"), asked, time.Now(), chaosWorkers)
	}
	next := c.start("orders", c.faultEnv.vars...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, c.replicas[i])
	c.replicas[i] = next
	return nil
}

// allowDuplicates allows work of a replica to be done again, as allow does. While etcd is
// unreachable, that is all work of the ids that the replica has claimed.
func (c *chaos) allowDuplicates(reason string, from, to time.Time, most int) {
	most += 2 * 120
	if since, was := c.etcdUnreachable(from); was && since.Before(from.Add(-time.Second)) {
		reason, from, most = reason+" while etcd was unreachable", since, max(most, 2*chaosHeld)
	}
	c.allow(reason, from, to, most)
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
func (c *chaos) losePackets(ctx context.Context) error {
	c.mu.Lock()
	s := c.replicas[0]
	c.mu.Unlock()
	before := s.log.count("connecting again", "consumer")
	c.toRabbit.blackhole()
	_, err := s.log.Wait(ctx, before+1, "connecting again", "consumer")
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

// during returns a fault that begins, and ends after d.
func during(d time.Duration, begin, end func() error) func(context.Context) error {
	return func(context.Context) error {
		if err := begin(); err != nil {
			return err
		}
		<-time.After(d)
		return end()
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
		c.mu.Unlock()
		if longerThanTTL { // all ids that either replica had claimed may be done again
			c.allow("etcd was unreachable for longer than CLAIM_TTL", from, to, 4*chaosHeld)
		}
		return err
	}
}

// loseAnswers loses the answers to 30 posts.
func (c *chaos) loseAnswers(ctx context.Context) error {
	from := len(c.receiver.all())
	c.silent.Store(true)
	defer c.silent.Store(false)
	return c.receiver.Wait(ctx, func(posts []post) bool {
		lost := 0
		for _, p := range posts[from:] {
			if p.Status == 0 {
				lost++
			}
		}
		return lost >= 30
	})
}
