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

// The results of a handler's tries.
func fails(err error) consume.Handler {
	return func(context.Context, consume.Job) error { return err }
}

func panics(context.Context, consume.Job) error { panic("boom") }

func crashes(_ context.Context, job consume.Job) error {
	var ids []string
	_ = ids[len(job.ID)]
	return nil
}

// hangs until it is cancelled.
func hangs(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return ctx.Err()
}

// late finishes, but only when its time is over.
func late(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return nil
}

func TestTries(t *testing.T) {
	away := fails(consume.Outage(errors.New("away"), 0))
	tests := map[string]struct {
		tries    []consume.Handler // one after the other
		attempts []int             // what each is told
		dead     string            // the dead letter; empty: processed
	}{
		"done":                     {tries: []consume.Handler{done}, attempts: []int{1}},
		"a failure, then done":     {tries: []consume.Handler{fails(errBoom), done}, attempts: []int{1, 2}},
		"two failures, then done":  {tries: []consume.Handler{fails(errBoom), fails(errBoom), done}, attempts: []int{1, 2, 3}},
		"failures":                 {tries: []consume.Handler{fails(errBoom), fails(errBoom), fails(errBoom)}, attempts: []int{1, 2, 3}, dead: "failed after 3: boom"},
		"the last error counts":    {tries: []consume.Handler{fails(errBoom), fails(errBoom), fails(errors.New("bang"))}, attempts: []int{1, 2, 3}, dead: "failed after 3: bang"},
		"final":                    {tries: []consume.Handler{fails(consume.Final(errBoom))}, attempts: []int{1}, dead: "failed after 1: boom"},
		"final after a failure":    {tries: []consume.Handler{fails(errBoom), fails(consume.Final(errBoom))}, attempts: []int{1, 2}, dead: "failed after 2: boom"},
		"final, wrapped":           {tries: []consume.Handler{fails(fmt.Errorf("order: %w", consume.Final(errBoom)))}, attempts: []int{1}, dead: "failed after 1: order: boom"},
		"an outage does not count": {tries: []consume.Handler{away, away, away, away, away, done}, attempts: []int{1, 1, 1, 1, 1, 1}},
		"an outage, wrapped":       {tries: []consume.Handler{fails(fmt.Errorf("order: %w", consume.Outage(errBoom, 0))), done}, attempts: []int{1, 1}},
		"outages and failures": {tries: []consume.Handler{fails(errBoom), away, fails(errBoom), away, away, fails(errBoom)},
			attempts: []int{1, 2, 2, 3, 3, 3}, dead: "failed after 3: boom"},
		"a panic, then done":    {tries: []consume.Handler{panics, done}, attempts: []int{1, 2}},
		"panics":                {tries: []consume.Handler{panics, panics, panics}, attempts: []int{1, 2, 3}, dead: "failed after 3: the handler panicked: boom"},
		"a run-time panic":      {tries: []consume.Handler{crashes, done}, attempts: []int{1, 2}},
		"a timeout, then done":  {tries: []consume.Handler{hangs, done}, attempts: []int{1, 2}},
		"timeouts":              {tries: []consume.Handler{hangs, hangs, hangs}, attempts: []int{1, 2, 3}, dead: "failed after 3: context deadline exceeded"},
		"done after its time":   {tries: []consume.Handler{late}, attempts: []int{1}},
		"an outage that hangs":  {tries: []consume.Handler{hangsInOutage, done}, attempts: []int{1, 1}},
		"a context of its own":  {tries: []consume.Handler{fails(context.Canceled), done}, attempts: []int{1, 2}},
		"a deadline of its own": {tries: []consume.Handler{fails(context.DeadlineExceeded), done}, attempts: []int{1, 2}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var attempts []int
				p := newProcess(t, func(ctx context.Context, job consume.Job) error {
					attempts = append(attempts, job.Attempt)
					if len(attempts) > len(tt.tries) {
						t.Error("one try too many")
						return nil
					}
					return tt.tries[len(attempts)-1](ctx, job)
				})
				p.Handle(t.Context(), p.order("1"))
				if diff := cmp.Diff(tt.attempts, attempts); diff != "" {
					t.Errorf("attempts (-want +got):\n%s", diff)
				}
				if p.count("ack") != 1 || p.count("claim") != 1 {
					t.Errorf("claimed %d times and acknowledged %d times, want once", p.count("claim"), p.count("ack"))
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
	return consume.Outage(fmt.Errorf("connect: %w", ctx.Err()), 0)
}

func TestMaxAttemptsOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, fails(errBoom))
		p.MaxAttempts = 1
		p.Handle(t.Context(), p.order("1"))
		if p.count("try") != 1 || p.count("dead-letter failed after 1") != 1 {
			t.Error(p.lines)
		}
	})
}

// A failure is not remembered: a later copy of the event has all its tries.
func TestCopyOfAFailedEventIsTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, fails(consume.Final(errBoom)))
		dead := func(token int) []string {
			return []string{"claim 1: granted", fmt.Sprint("try 1: attempt 1, token ", token), "dead-letter failed after 1: boom", "ack",
				"count new_order_failed", "msg=dead-lettered service=orders type=new_order id=1 reason=failed error=boom", "release 1"}
		}
		p.Handle(t.Context(), p.order("1"))
		p.expect(t, dead(1)...)
		p.Handle(t.Context(), p.order("1"))
		p.expect(t, dead(2)...)
	})
}

// A copy that waits for one that fails is not skipped.
func TestCopyInFlightOfAFailedEventIsTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := make(chan struct{})
		p := newProcess(t, func(_ context.Context, job consume.Job) error {
			<-fail
			if job.Token == 1 {
				return consume.Final(errBoom)
			}
			return nil
		})
		p.handle(t.Context(), p.order("1"))
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
		close(fail)
		p.expect(t, "dead-letter failed after 1: boom", "ack", "count new_order_failed",
			"msg=dead-lettered service=orders type=new_order id=1 reason=failed error=boom", "release 1",
			"claim 1: granted", "try 1: attempt 1, token 2", "complete 1", "count new_order_ok", processed, "ack")
	})
}

func TestPanicIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := []consume.Handler{panics, done}
		p := newProcess(t, func(ctx context.Context, job consume.Job) error { return tries[job.Attempt-1](ctx, job) })
		p.Handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1", `level=ERROR msg="the handler panicked" service=orders id=1 panic=boom`,
			"try 1: attempt 2, token 1", "complete 1", "count new_order_ok", processed, "ack")
		if len(p.Slots) != 0 {
			t.Error("the panic kept its slot")
		}
	})
}

// Between tries the pause grows from 100 ms to 3 s, give or take a half of it.
func TestPauseBetweenTries(t *testing.T) {
	tests := map[string]error{"failures": errBoom, "outage": consume.Outage(errBoom, 0)}
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
				p.Handle(t.Context(), p.order("1"))
				jitter := false
				for i := range len(starts) - 1 {
					pause := starts[i+1].Sub(starts[i])
					want := min(time.Duration(100*math.Pow(2, float64(i)))*time.Millisecond, 3*time.Second)
					if pause < want/2 || pause > want*3/2 {
						t.Errorf("pause %d is %v, want %v or up to a half more or less", i, pause, want)
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
			return consume.Outage(errBoom, waits[len(starts)-1])
		})
		p.Handle(t.Context(), p.order("1"))
		for i, wait := range waits {
			if pause := starts[i+1].Sub(starts[i]); pause < max(wait, 50*time.Millisecond) || pause > max(wait, 5*time.Second) {
				t.Errorf("it was asked to wait %v, and waited %v", wait, pause)
			}
		}
	})
}

// Each try has the whole HANDLER_TIMEOUT, and the wait for a slot is not in it.
func TestTimeoutOfEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries []time.Duration
		p := newProcess(t, func(ctx context.Context, job consume.Job) error {
			begin := time.Now()
			<-ctx.Done()
			tries = append(tries, time.Since(begin))
			return ctx.Err()
		})
		p.Slots = make(consume.Slots, 1)
		p.Slots <- struct{}{}
		returned := p.handle(t.Context(), p.order("1"))
		pass(time.Hour)
		<-p.Slots
		pass(2 * time.Minute)
		if want := slices.Repeat([]time.Duration{30 * time.Second}, 3); !slices.Equal(tries, want) || !returned() {
			t.Errorf("the tries took %v, want %v", tries, want)
		}
	})
}

func TestErrorsKeepTheirCause(t *testing.T) {
	for name, err := range map[string]error{"final": consume.Final(errBoom), "outage": consume.Outage(errBoom, time.Second)} {
		if !errors.Is(err, errBoom) || err.Error() != "boom" {
			t.Errorf("%s: %v does not say what happened", name, err)
		}
	}
}
