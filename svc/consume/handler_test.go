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

func TestAttempts(t *testing.T) {
	unavailable := fails(consume.Unavailable(errBoom, 0))
	unknown := fails(consume.Unknown(errBoom))
	lost := fails(consume.Unavailable(consume.Unknown(errors.New("connection lost")), 0))
	tests := map[string]struct {
		handlers []consume.Handler // of the attempts, in order
		attempts []int             // the number of each attempt
		dead     string            // the dead letter; empty: processed
	}{
		"two failures, then done":   {[]consume.Handler{fails(errBoom), fails(errBoom), done}, []int{1, 2, 3}, ""},
		"failures":                  {[]consume.Handler{fails(errBoom), fails(errBoom), fails(errors.New("bang"))}, []int{1, 2, 3}, "failed after 3: bang"},
		"final":                     {[]consume.Handler{fails(errBoom), fails(consume.Permanent(errBoom))}, []int{1, 2}, "failed after 2: boom"},
		"final, wrapped":            {[]consume.Handler{fails(fmt.Errorf("order: %w", consume.Permanent(errBoom)))}, []int{1}, "failed after 1: order: boom"},
		"an unknown outcome counts": {[]consume.Handler{unknown, unknown, unknown}, []int{1, 2, 3}, "failed after 3: boom"},
		"an outage does not count":  {[]consume.Handler{unavailable, lost, unavailable, lost, lost, done}, []int{1, 1, 1, 1, 1, 1}, ""},
		"outages and failures": {[]consume.Handler{fails(errBoom), unavailable, fails(errBoom), unavailable, lost, fails(errBoom)},
			[]int{1, 2, 2, 3, 3, 3}, "failed after 3: boom"},
		"panics":                {[]consume.Handler{panics, panics, panics}, []int{1, 2, 3}, "failed after 3: the handler panicked: boom"},
		"timeouts":              {[]consume.Handler{hangs, hangs, hangs}, []int{1, 2, 3}, "failed after 3: context deadline exceeded"},
		"done after its time":   {[]consume.Handler{late}, []int{1}, ""},
		"an outage that hangs":  {[]consume.Handler{hangsInOutage, done}, []int{1, 1}, ""},
		"a context of its own":  {[]consume.Handler{fails(context.Canceled), done}, []int{1, 2}, ""},
		"a deadline of its own": {[]consume.Handler{fails(context.DeadlineExceeded), done}, []int{1, 2}, ""},
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

// The pause between attempts grows from 100 ms to 3 s, in an outage to 20 s, with a jitter of up
// to half of it.
func TestPauseBetweenAttempts(t *testing.T) {
	for err, most := range map[error]time.Duration{errBoom: 3 * time.Second, consume.Unavailable(errBoom, 0): 20 * time.Second} {
		t.Run(most.String(), func(t *testing.T) {
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
					want := min(time.Duration(100*math.Pow(2, float64(i)))*time.Millisecond, most)
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
