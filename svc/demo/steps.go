package main

import (
	"context"
	"fmt"
	"time"
)

// The steps of scenes, and what they check.

// begin prepares for a scene: services and checks of the one before are gone.
func (s *env) begin(number int, scene scene) {
	s.services, s.checks = nil, nil
	s.receiver.reset()
	s.show.sample(s.statsd.Counts(), time.Now())
	s.show.begin(number, scene)
	s.screen.scene(number, scene)
}

// say tells the audience what happens now, and leaves them a moment to read it.
func (s *env) say(ctx context.Context, format string, args ...any) {
	step := fmt.Sprintf(format, args...)
	s.show.update(func(v *view) { v.Step = step })
	s.screen.step(step)
	s.beat(ctx, 500*time.Millisecond)
}

// beat waits so that the audience can follow. Nothing depends on it.
func (s *env) beat(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// id is an event id that no earlier scene or run has used.
func (s *env) id(name string, n int) string { return fmt.Sprintf("%s-%s-%d", s.tag, name, n) }

func (s *env) ids(name string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = s.id(name, i)
	}
	return ids
}

func event(id string) string { return fmt.Sprintf(`{"type":"new_order","id":"%s"}`, id) }

// publish publishes an event for each id, all at once.
func (s *env) publish(ctx context.Context, ids ...string) error {
	bodies := make([]string, len(ids))
	for i, id := range ids {
		bodies[i] = event(id)
	}
	return s.broker.publish(ctx, bodies)
}

// publishAt publishes an event for each id, so many per second, in at most 20
// bursts a second.
func (s *env) publishAt(ctx context.Context, perSecond int, ids []string) error {
	burst := max(perSecond/20, 1)
	tick := time.NewTicker(time.Second * time.Duration(burst) / time.Duration(perSecond))
	defer tick.Stop()
	for ; len(ids) > 0; ids = ids[min(burst, len(ids)):] {
		if err := s.publish(ctx, ids[:min(burst, len(ids))]...); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// seen returns how many events a service has processed and skipped in this
// scene.
func (s *env) seen(role string) (ok, skipped int64) {
	s.show.sample(s.statsd.Counts(), time.Now())
	v := s.show.current()
	for i := range roles {
		if roles[i] == role {
			return v.Services[i].OK, v.Services[i].Skipped
		}
	}
	panic("no such role: " + role)
}

// settle waits until a service has counted that many events. If it never does,
// the numbers will show it: that is no error here.
func (s *env) settle(ctx context.Context, role string, events int64) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	s.statsd.Wait(ctx, func(counts map[string]int64) bool {
		return s.show.since(counts, role+"_new_order_ok")+s.show.since(counts, role+"_new_order_skipped") >= events
	})
}

// until waits until a number of the receiver or a queue is reached, asking now and
// then; these do not tell when they change.
func (s *env) until(ctx context.Context, reached func() bool) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	for !reached() && ctx.Err() == nil {
		s.beat(ctx, 20*time.Millisecond)
	}
}

// expect is a number to judge the scene by.
func (s *env) expect(what string, got, want int64) {
	s.checks = append(s.checks, check{what, got, want})
}

// expectSeen judges what a service has counted in this scene.
func (s *env) expectSeen(role, when string, ok, skipped int64) {
	gotOK, gotSkipped := s.seen(role)
	s.expect(role+" ok"+when, gotOK, ok)
	s.expect(role+" skipped"+when, gotSkipped, skipped)
}

func (s *env) passed() bool {
	for _, f := range s.checks {
		if f.got != f.want {
			return false
		}
	}
	return true
}

// left finds what the scene has left in the queues. The services have stopped,
// so that what they had not acknowledged is back, and counted.
func (s *env) left(ctx context.Context) error {
	var left int64
	for _, role := range roles {
		for _, queue := range []string{role + "-queue", role + "-queue.dead"} {
			n, _, err := s.broker.inspect(queue)
			if err != nil {
				return err
			}
			left += n
		}
	}
	s.expect("left in the queues", left, 0)
	return ctx.Err()
}

// startBoth starts both services.
func (s *env) startBoth(ctx context.Context, vars ...string) error {
	for _, role := range roles {
		if _, err := s.start(ctx, role, vars...); err != nil {
			return err
		}
	}
	return nil
}

// expectWork judges the work that has arrived at the receiver.
func (s *env) expectWork(role string, ids []string) {
	once, lost, twice := s.receiver.accounts(role, ids)
	s.expect(role+" work done once", once, int64(len(ids)))
	s.expect(role+" lost", lost, 0)
	s.expect(role+" done twice", twice, 0)
}
