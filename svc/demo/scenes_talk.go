package main

import (
	"context"
	"slices"
)

// Scenes 1 to 3, which are the talk's.

// consumeAndProduce shows that both services get every event.
func consumeAndProduce(ctx context.Context, s *env) error {
	if err := s.startBoth(ctx); err != nil {
		return err
	}
	const n = 60
	s.say(ctx, "One event is published.")
	ids := s.ids("produce", n)
	if err := s.publish(ctx, ids[0]); err != nil {
		return err
	}
	s.settle(ctx, "orders", 1)
	s.settle(ctx, "notify", 1)
	s.say(ctx, "Both have processed it. And %d more, at 30 a second.", n-1)
	if err := s.publishAt(ctx, 30, ids[1:]); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, n)
		s.expectSeen(role, "", n, 0)
	}
	return nil
}

// recovery stops notify for a while.
func recovery(ctx context.Context, s *env) error {
	if _, err := s.start(ctx, "orders"); err != nil {
		return err
	}
	notify, err := s.start(ctx, "notify")
	if err != nil {
		return err
	}
	const n, missed = 60, 40
	ids := s.ids("recovery", n)
	s.say(ctx, "Both are up, and get %d events.", n-missed)
	if err := s.publishAt(ctx, 40, ids[missed:]); err != nil {
		return err
	}
	s.settle(ctx, "notify", n-missed)
	s.say(ctx, "notify is stopped. %d more events.", missed)
	if err := notify.stop(ctx); err != nil {
		return err
	}
	if err := s.publishAt(ctx, 20, ids[:missed]); err != nil {
		return err
	}
	s.settle(ctx, "orders", n)
	s.expectSeen("orders", ", notify down", n, 0)
	s.expectSeen("notify", ", being down", n-missed, 0)
	waiting, _, err := s.broker.inspect("notify-queue")
	if err != nil {
		return err
	}
	s.expect("waiting for notify", waiting, missed)
	s.say(ctx, "%d events wait for notify. It comes back.", waiting)
	if _, err := s.start(ctx, "notify"); err != nil {
		return err
	}
	s.settle(ctx, "notify", n)
	s.expectSeen("notify", ", being back", n, 0)
	return nil
}

// idempotency publishes duplicates, without etcd and with it.
func idempotency(ctx context.Context, s *env) error {
	const n = 10
	if err := s.startBoth(ctx); err != nil {
		return err
	}
	s.say(ctx, "No etcd. The same event, %d times.", n)
	if err := s.publishAt(ctx, 10, slices.Repeat(s.ids("plain", 1), n)); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, n)
		s.expectSeen(role, ", no etcd", n, 0)
	}
	s.say(ctx, "Processed %d times. Both are started again, with ENABLE_ETCD=true.", n)
	if err := s.stopAll(ctx); err != nil {
		return err
	}
	if err := s.startBoth(ctx, "ENABLE_ETCD=true"); err != nil {
		return err
	}
	s.say(ctx, "Another event, %d times.", n)
	same := slices.Repeat(s.ids("etcd", 1), n)
	if err := s.publishAt(ctx, 10, same); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, 2*n)
		s.expectSeen(role, ", with etcd", n+1, n-1)
	}
	s.say(ctx, "Processed once, skipped %d times. Both are restarted, and it comes again.", n-1)
	if err := s.stopAll(ctx); err != nil {
		return err
	}
	if err := s.startBoth(ctx, "ENABLE_ETCD=true"); err != nil {
		return err
	}
	if err := s.publishAt(ctx, 10, same); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, 3*n)
		s.expectSeen(role, ", restarted", n+1, 2*n-1)
	}
	s.say(ctx, "Skipped at once: each has read what it knows from etcd at its start.")
	return nil
}
