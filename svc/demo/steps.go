package main

import (
	"context"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// This file contains the steps that publish events and check their outcomes.

// check is a number that decides whether the scene passes.
type check struct {
	what      string
	got, want int
}

func (c check) failed() bool { return c.got != c.want }

// publish publishes an event for each id. After an error of the broker it publishes the
// events again: the services skip the duplicates.
func (s *script) publish(ids ...string) {
	s.step(func(ctx context.Context) error {
		return s.publisher.PublishUntilConfirmed(ctx, harness.NewOrders(ids...)...)
	})
}

// publishAt is publish at a rate.
func (s *script) publishAt(perSecond int, ids []string) {
	s.step(func(ctx context.Context) error {
		return s.publisher.PublishAt(ctx, perSecond, harness.NewOrders(ids...)...)
	})
}

// load publishes events at a rate until stop is called. stop returns their ids.
func (s *script) load(prefix string, perSecond int) (stop func() (ids []string)) {
	ctx, cancel := context.WithCancel(s.sceneCtx)
	published := make(chan []string, 1)
	go func() { // until stop
		var ids []string
		for ctx.Err() == nil {
			part := harness.IDs(prefix, len(ids), perSecond/10)
			s.publishAt(perSecond, part)
			ids = append(ids, part...)
		}
		published <- ids
	}()
	return func() []string {
		cancel()
		return <-published
	}
}

// until polls f until it returns true, or for maxStep. A timeout is not an error here:
// the checks of the scene then fail.
func (s *script) until(f func() bool) {
	ctx, cancel := context.WithTimeout(s.sceneCtx, maxStep)
	defer cancel()
	for !f() && ctx.Err() == nil {
		s.wait(20 * time.Millisecond)
	}
}

// waitCounted waits until a service has processed or skipped that many events.
func (s *script) waitCounted(role string, events int) {
	s.until(func() bool {
		ok, skipped := s.status.counted(role)
		return ok+skipped >= events
	})
}

// waitAcknowledged waits until the services have acknowledged all messages.
func (s *script) waitAcknowledged() {
	s.until(func() (all bool) {
		s.step(func(ctx context.Context) error {
			messages, err := s.servers.Rabbit.Queues(ctx, "messages")
			all = messages["orders-queue"] == "0" && messages["notify-queue"] == "0"
			return err
		})
		return all
	})
}

// expect adds a check.
func (s *script) expect(what string, got, want int) {
	if s.sceneCtx.Err() == nil {
		s.checks = append(s.checks, check{what, got, want})
	}
}

// expectCounted waits until a service has counted ok plus skipped events in this scene,
// and checks how many of them it has processed and how many skipped.
func (s *script) expectCounted(role, when string, ok, skipped int) {
	s.waitCounted(role, ok+skipped)
	gotOK, gotSkipped := s.status.counted(role)
	s.expect(role+" ok"+when, gotOK, ok)
	s.expect(role+" skipped"+when, gotSkipped, skipped)
}

// expectBoth is expectCounted for both services.
func (s *script) expectBoth(when string, ok, skipped int) {
	for _, role := range roles {
		s.expectCounted(role, when, ok, skipped)
	}
}

// expectWork checks that a receiver has done the work of each id exactly once.
func (s *script) expectWork(receiver *harness.Receiver, role string, ids []string) {
	once, lost, twice := receiver.Accounts(role, ids)
	s.expect(role+" work done once", once, len(ids))
	s.expect(role+" lost", lost, 0)
	s.expect(role+" done twice", twice, 0)
}

// expectEmptyQueues checks that the scene has left no messages in the queues. The
// services have stopped, so unacknowledged deliveries are back in the queues and count.
func (s *script) expectEmptyQueues() {
	s.expect("left in the queues", s.ready("orders-queue", "orders-queue.dead", "notify-queue", "notify-queue.dead"), 0)
}

// ready returns how many messages are ready in queues.
func (s *script) ready(queues ...string) (n int) {
	s.step(func(ctx context.Context) (err error) {
		n, err = s.publisher.Ready(ctx, queues...)
		return err
	})
	return n
}
