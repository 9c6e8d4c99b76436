package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Scenes 4 to 6, which go beyond the talk.

// crash kills orders in mid-work.
func crash(ctx context.Context, s *env) error {
	const n, workTime = 10, 1500 * time.Millisecond
	// notify has no slow work, and goes on.
	if _, err := s.start(ctx, "notify", "ENABLE_ETCD=true"); err != nil {
		return err
	}
	vars := []string{"ENABLE_ETCD=true", "CLAIM_TTL=2s", "WEBHOOK_URL=" + s.receiver.url}
	victim, err := s.start(ctx, "orders", vars...)
	if err != nil {
		return err
	}
	s.receiver.delay.Store(int64(workTime))
	ids := s.ids("crash", n)
	s.say(ctx, "%d events. The work takes %.1f s each.", n, workTime.Seconds())
	if err := s.publish(ctx, ids...); err != nil {
		return err
	}
	s.until(ctx, func() bool { return s.receiver.started("orders") >= n })
	victim.kill()
	began := time.Now()
	once, _, _ := s.receiver.accounts("orders", ids)
	s.expect("work done before the kill", once, 0)
	s.expect("work begun before the kill", s.receiver.started("orders"), n)
	s.say(ctx, "kill -9 in the middle of %d of them. The broker has them still.", n)
	s.say(ctx, "orders comes back. It waits 2 s for the dead one's claims.")
	if _, err := s.start(ctx, "orders", vars...); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, n)
	}
	s.say(ctx, "All are done, %.1f s after the crash.", time.Since(began).Seconds())
	for _, role := range roles {
		s.expectSeen(role, "", n, 0)
	}
	s.expectWork("orders", ids)
	return nil
}

// race has two replicas go for the same events.
func race(ctx context.Context, s *env) error {
	const n, copies = 1000, 3
	work := "WEBHOOK_URL=" + s.receiver.url
	for _, role := range []string{"orders", "orders", "notify"} {
		if _, err := s.start(ctx, role, "ENABLE_ETCD=true", work); err != nil {
			return err
		}
	}
	ids := s.ids("race", n)
	all := slices.Repeat(ids, copies)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s.say(ctx, "Two replicas of orders, one notify. 3,000 messages, shuffled, at 500 a second.")
	began := time.Now()
	if err := s.publishAt(ctx, 500, all); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, n*copies)
	}
	s.say(ctx, "Both services are through, after %.1f s.", time.Since(began).Seconds())
	for _, role := range roles {
		s.expectSeen(role, "", n, n*(copies-1))
		s.expectWork(role, ids)
	}
	return nil
}

// outage takes etcd and then the broker away under load.
func outage(ctx context.Context, s *env) error {
	for _, role := range roles {
		// A small PREFETCH leaves what waits in the queue, for all to see.
		if _, err := s.start(ctx, role, "ENABLE_ETCD=true", "PREFETCH=50", "WEBHOOK_URL="+s.receiver.url); err != nil {
			return err
		}
	}
	load := s.load(ctx, 300)
	err := s.breakServers(ctx)
	ids, loadErr := load()
	if err := errors.Join(err, loadErr); err != nil {
		return err
	}
	n := int64(len(ids))
	s.say(ctx, "%d events were published. What waits is worked off.", n)
	for _, role := range roles {
		s.until(ctx, func() bool { ok, _ := s.seen(role); return ok >= n })
	}
	for _, role := range roles {
		ok, skipped := s.seen(role)
		s.expect(role+" ok", ok, n)
		s.expectWork(role, ids)
		if skipped > 0 {
			s.screen.note(fmt.Sprintf("%s has skipped %d that came twice.", role, skipped))
		}
	}
	return nil
}

func (s *env) breakServers(ctx context.Context) error {
	s.say(ctx, "300 events a second.")
	s.beat(ctx, 1500*time.Millisecond)

	if err := s.etcd.Kill(); err != nil {
		return err
	}
	s.outage("etcd")
	s.say(ctx, "kill -9 of etcd. No id can be claimed: the events wait.")
	s.beat(ctx, 2500*time.Millisecond)
	if err := s.etcd.Start(ctx); err != nil {
		return err
	}
	s.outage("")
	s.say(ctx, "etcd is back.")
	s.beat(ctx, 2*time.Second)

	if err := s.rabbit.Kill(); err != nil {
		return err
	}
	s.outage("RabbitMQ")
	s.say(ctx, "kill -9 of RabbitMQ. Nothing can be published or acknowledged.")
	if err := s.rabbit.Start(ctx); err != nil {
		return err
	}
	s.outage("")
	s.say(ctx, "RabbitMQ is back. The publisher and the services connect again.")
	s.beat(ctx, 2*time.Second)
	return nil
}

// load publishes so many events a second until the function it returns is
// called, which returns the ids of all that the broker has confirmed.
func (s *env) load(ctx context.Context, perSecond int) (stop func() (ids []string, err error)) {
	quit, done := make(chan struct{}), make(chan struct{})
	var ids []string
	var err error
	go func() {
		defer close(done)
		for err == nil {
			select {
			case <-quit:
				return
			default:
			}
			// What takes a tenth of a second.
			part := make([]string, perSecond/10)
			for i := range part {
				part[i] = s.id("outage", len(ids)+i)
			}
			if err = s.publishAt(ctx, perSecond, part); err == nil {
				ids = append(ids, part...)
			}
		}
	}()
	return func() ([]string, error) {
		close(quit)
		<-done
		return ids, err
	}
}

// outage shows that a server is down, or that none is.
func (s *env) outage(server string) { s.show.update(func(v *view) { v.Outage = server }) }
