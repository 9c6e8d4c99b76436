package consume_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

var errBoom = errors.New("boom")

// fails returns a handler whose attempts fail with err.
func fails(err error) consume.Handler {
	return func(context.Context, consume.Job) error { return err }
}

func panics(context.Context, consume.Job) error { panic("boom") }

func crashes(_ context.Context, job consume.Job) error {
	var ids []string
	_ = ids[len(job.ID)]
	return nil
}

// hangs is a handler that blocks until it is cancelled.
func hangs(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return ctx.Err()
}

// late is a handler that succeeds, but only after its timeout.
func late(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return nil
}

func TestAttempts(t *testing.T) {
	unavailable := fails(consume.Unavailable(errBoom, 0))
	lost := fails(consume.Unavailable(consume.Unknown(errors.New("connection lost")), 0))
	tests := map[string]struct {
		handlers []consume.Handler // of the attempts, in order
		attempts []int             // the number of each attempt
		dead     string            // the dead letter; empty: processed
	}{
		"done":                      {handlers: []consume.Handler{done}, attempts: []int{1}},
		"a failure, then done":      {handlers: []consume.Handler{fails(errBoom), done}, attempts: []int{1, 2}},
		"two failures, then done":   {handlers: []consume.Handler{fails(errBoom), fails(errBoom), done}, attempts: []int{1, 2, 3}},
		"failures":                  {handlers: []consume.Handler{fails(errBoom), fails(errBoom), fails(errBoom)}, attempts: []int{1, 2, 3}, dead: "failed after 3: boom"},
		"the last error counts":     {handlers: []consume.Handler{fails(errBoom), fails(errBoom), fails(errors.New("bang"))}, attempts: []int{1, 2, 3}, dead: "failed after 3: bang"},
		"final":                     {handlers: []consume.Handler{fails(consume.Permanent(errBoom))}, attempts: []int{1}, dead: "failed after 1: boom"},
		"final after a failure":     {handlers: []consume.Handler{fails(errBoom), fails(consume.Permanent(errBoom))}, attempts: []int{1, 2}, dead: "failed after 2: boom"},
		"final, wrapped":            {handlers: []consume.Handler{fails(fmt.Errorf("order: %w", consume.Permanent(errBoom)))}, attempts: []int{1}, dead: "failed after 1: order: boom"},
		"an unknown outcome counts": {handlers: []consume.Handler{fails(consume.Unknown(errBoom)), fails(consume.Unknown(errBoom)), done}, attempts: []int{1, 2, 3}},
		"unknown outcomes": {handlers: []consume.Handler{fails(consume.Unknown(errBoom)), fails(consume.Unknown(errBoom)), fails(consume.Unknown(errBoom))},
			attempts: []int{1, 2, 3}, dead: "failed after 3: boom"},
		"an unknown outcome in an outage does not count": {handlers: []consume.Handler{lost, lost, lost, lost, lost, done}, attempts: []int{1, 1, 1, 1, 1, 1}},
		"an outage does not count":                       {handlers: []consume.Handler{unavailable, unavailable, unavailable, done}, attempts: []int{1, 1, 1, 1}},
		"an outage, wrapped":                             {handlers: []consume.Handler{fails(fmt.Errorf("order: %w", consume.Unavailable(errBoom, 0))), done}, attempts: []int{1, 1}},
		"outages and failures": {handlers: []consume.Handler{fails(errBoom), unavailable, fails(errBoom), unavailable, unavailable, fails(errBoom)},
			attempts: []int{1, 2, 2, 3, 3, 3}, dead: "failed after 3: boom"},
		"a panic, then done":    {handlers: []consume.Handler{panics, done}, attempts: []int{1, 2}},
		"panics":                {handlers: []consume.Handler{panics, panics, panics}, attempts: []int{1, 2, 3}, dead: "failed after 3: the handler panicked: boom"},
		"a run-time panic":      {handlers: []consume.Handler{crashes, done}, attempts: []int{1, 2}},
		"a timeout, then done":  {handlers: []consume.Handler{hangs, done}, attempts: []int{1, 2}},
		"timeouts":              {handlers: []consume.Handler{hangs, hangs, hangs}, attempts: []int{1, 2, 3}, dead: "failed after 3: context deadline exceeded"},
		"done after its time":   {handlers: []consume.Handler{late}, attempts: []int{1}},
		"an outage that hangs":  {handlers: []consume.Handler{hangsInOutage, done}, attempts: []int{1, 1}},
		"a context of its own":  {handlers: []consume.Handler{fails(context.Canceled), done}, attempts: []int{1, 2}},
		"a deadline of its own": {handlers: []consume.Handler{fails(context.DeadlineExceeded), done}, attempts: []int{1, 2}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var attempts []int
				p := newProcess(t, func(ctx context.Context, job consume.Job) error {
					attempts = append(attempts, job.Attempt)
					if len(attempts) > len(tt.handlers) {
						t.Error("there is one attempt too many")
						return nil
					}
					return tt.handlers[len(attempts)-1](ctx, job)
				})
				p.run(p.order("1"))
				if diff := cmp.Diff(tt.attempts, attempts); diff != "" {
					t.Errorf("attempts (-want +got):\n%s", diff)
				}
				if p.count("ack") != 1 || p.count("claim") != 1 {
					t.Errorf("claimed %d times and acknowledged %d times, want once", p.count("claim"), p.count("ack"))
				}
				if checks := p.count("check"); (tt.dead == "") != (checks == 0) {
					t.Errorf("the claim was checked %d times", checks)
				}
				if tt.dead == "" && (p.count("count new_order_ok") != 1 || p.count("dead-letter") != 0) {
					t.Error("not processed:", p.lines)
				}
				if tt.dead != "" && (p.count("dead-letter "+tt.dead) != 1 || p.count("count new_order_failed") != 1) {
					t.Error("not dead-lettered:", p.lines)
				}
			})
		})
	}
}

func hangsInOutage(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return consume.Unavailable(fmt.Errorf("connect: %w", ctx.Err()), 0)
}

func TestMaxAttemptsOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, fails(errBoom))
		p.MaxAttempts = 1
		p.run(p.order("1"))
		if p.count("work") != 1 || p.count("dead-letter failed after 1") != 1 {
			t.Error(p.lines)
		}
	})
}

// A failure is not remembered: a later copy of the event gets all its attempts.
func TestCopyOfAFailedEventIsTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, fails(consume.Permanent(errBoom)))
		dead := func(token int) []string {
			return []string{"claim 1", fmt.Sprint("work 1: attempt 1, token ", token), "check 1", "dead-letter failed after 1: boom",
				"count new_order_failed", "msg=dead-lettered type=new_order id=1 reason=failed error=boom", "ack", "release 1"}
		}
		p.run(p.order("1"))
		p.expect(t, dead(1)...)
		p.run(p.order("1"))
		p.expect(t, dead(2)...)
	})
}

// A copy that waits while another copy fails is not skipped.
func TestCopyInFlightOfAFailedEventIsTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail, fails := make(chan struct{}), once(consume.Permanent(errBoom))
		p := newProcess(t, func(ctx context.Context, job consume.Job) error {
			<-fail
			return fails(ctx, job)
		})
		p.handle(t.Context(), p.order("1"))
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		close(fail)
		p.expect(t, "check 1", "dead-letter failed after 1: boom", "count new_order_failed",
			"msg=dead-lettered type=new_order id=1 reason=failed error=boom", "ack", "release 1",
			"claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack")
	})
}

func TestPanicIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handlers := []consume.Handler{panics, done}
		p := newProcess(t, func(ctx context.Context, job consume.Job) error { return handlers[job.Attempt-1](ctx, job) })
		p.run(p.order("1"))
		p.expect(t, "claim 1", "work 1: attempt 1, token 1", `level=ERROR msg="the handler panicked" id=1 panic=boom`,
			"work 1: attempt 2, token 1", "complete 1", "count new_order_ok", processed, "ack")
		if len(p.Semaphore) != 0 {
			t.Error("the handler that panicked still holds its slot")
		}
	})
}

// The pause between attempts grows from 100 ms to 3 s, with a jitter of up to half of it.
func TestPauseBetweenAttempts(t *testing.T) {
	tests := map[string]error{"failures": errBoom, "outage": consume.Unavailable(errBoom, 0), "lost": consume.Unavailable(consume.Unknown(errBoom), 0)}
	for name, err := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var starts []time.Time
				p := newProcess(t, func(context.Context, consume.Job) error {
					starts = append(starts, time.Now())
					if len(starts) == 10 {
						return nil
					}
					return err
				})
				p.MaxAttempts = 10
				p.run(p.order("1"))
				jitter := false
				for i := range len(starts) - 1 {
					pause := starts[i+1].Sub(starts[i])
					want := min(time.Duration(100*math.Pow(2, float64(i)))*time.Millisecond, 3*time.Second)
					if pause < want/2 || pause > want*3/2 {
						t.Errorf("pause %d is %v, want %v plus or minus a half", i, pause, want)
					}
					jitter = jitter || pause != want
				}
				if !jitter {
					t.Error("the pauses have no jitter")
				}
			})
		})
	}
}

func TestOutageWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		waits := []time.Duration{0, 20 * time.Second, time.Millisecond, 30 * time.Second}
		p := newProcess(t, func(context.Context, consume.Job) error {
			starts = append(starts, time.Now())
			if len(starts) > len(waits) {
				return nil
			}
			return consume.Unavailable(errBoom, waits[len(starts)-1])
		})
		p.run(p.order("1"))
		for i, wait := range waits {
			if pause := starts[i+1].Sub(starts[i]); pause < max(wait, 50*time.Millisecond) || pause > max(wait, 5*time.Second) {
				t.Errorf("the handler asked for a wait of %v, and the pause was %v", wait, pause)
			}
		}
	})
}

// Each attempt has the whole HANDLER_TIMEOUT. The wait for a slot does not count.
func TestTimeoutOfEachAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts []time.Duration
		p := newProcess(t, func(ctx context.Context, job consume.Job) error {
			begin := time.Now()
			<-ctx.Done()
			attempts = append(attempts, time.Since(begin))
			return ctx.Err()
		})
		p.Semaphore = make(consume.Semaphore, 1)
		p.Semaphore <- struct{}{}
		returned := p.handle(t.Context(), p.order("1"))
		pass(time.Hour)
		<-p.Semaphore
		pass(2 * time.Minute)
		if want := slices.Repeat([]time.Duration{30 * time.Second}, 3); !slices.Equal(attempts, want) || !returned() {
			t.Errorf("the attempts took %v, want %v", attempts, want)
		}
	})
}

// Work that may have been done is retried under the same claim and token, even after
// the delivery's context has ended.
func TestUnknownKeepsTheClaim(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		next int // the second attempt's number
	}{
		"a timeout":         {consume.Unknown(errBoom), 2},
		"a lost connection": {consume.Unavailable(consume.Unknown(errBoom), time.Hour), 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, once(tt.err))
				gone, leave := context.WithCancel(t.Context())
				p.handle(gone, p.order("1"))
				leave()
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				pass(2 * time.Hour)
				p.expect(t, fmt.Sprintf("work 1: attempt %d, token 1", tt.next), "complete 1", "count new_order_ok", processed, "ack")
			})
		})
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	for name, err := range map[string]error{
		"permanent": consume.Permanent(errBoom), "unavailable": consume.Unavailable(errBoom, time.Second),
		"unknown": consume.Unknown(errBoom),
	} {
		if !errors.Is(err, errBoom) || err.Error() != "boom" {
			t.Errorf("%s: %v hides its cause", name, err)
		}
	}
}
