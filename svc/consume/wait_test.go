package consume_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// A delivery that waits holds no slot. It stops waiting when its channel closes or the
// service stops, and begins no attempt while its claim is suspended.
func TestWaits(t *testing.T) {
	tests := map[string]struct {
		work    consume.Handler
		waits   string            // the call that waits
		before  func(p *process)  // the delivery arrives
		after   func(p *process)  // it has arrived
		order   func(d *delivery) // changes the delivery of order 1
		want    []string          // when it waits
		left    []string          // after its channel has closed
		resumed []string          // after its claim was suspended for two hours; nil: not tried
	}{
		"for the claim": {work: done, waits: "claim"},
		"for a slot": {
			work: done, before: func(p *process) { p.Semaphore = make(consume.Semaphore) }, // without a slot
			after: func(p *process) { p.Semaphore = make(consume.Semaphore, 1) },
			want:  []string{"claim 1"}, left: []string{"release 1"}, resumed: []string{"work 1: attempt 1, token 2"},
		},
		"after a failure": {
			work: failsFirst(errBoom),
			want: []string{"claim 1", "work 1: attempt 1, token 1"}, left: []string{"release 1"}, resumed: []string{"work 1: attempt 2, token 2"},
		},
		"in an outage": {
			work: failsFirst(consume.Unavailable(errBoom, time.Hour)),
			want: []string{"claim 1", "work 1: attempt 1, token 1"}, left: []string{"release 1"}, resumed: []string{"work 1: attempt 1, token 2"},
		},
		"for a suspended claim": {
			work: hangs, after: func(p *process) { p.claims.Suspend() },
			want: []string{"claim 1", "work 1: attempt 1, token 1"}, left: []string{"release 1"},
		},
		"for the check": {
			work: fails(consume.Permanent(errBoom)), waits: "check",
			want: []string{"claim 1", "work 1: attempt 1, token 1"}, left: []string{"release 1"},
		},
		"for a dead letter": {
			work: fails(consume.Permanent(errBoom)), order: func(d *delivery) { d.broken = true },
			want: []string{"claim 1", "work 1: attempt 1, token 1", "check 1"}, left: []string{"release 1"},
		},
		"for the dead letter of a malformed message": {
			work: done, order: func(d *delivery) { d.body, d.broken = `{}`, true },
		},
	}
	for name, tt := range tests {
		start := func(t *testing.T) (p *process, returned func() bool, leave func()) {
			p = newProcess(t, tt.work)
			if tt.before != nil {
				tt.before(p)
			}
			if tt.waits != "" {
				p.claims.waits[tt.waits] = make(chan struct{})
			}
			d := p.order("1")
			if tt.order != nil {
				tt.order(d)
			}
			gone, leave := context.WithCancel(t.Context())
			returned = p.handle(gone, d)
			if tt.after != nil {
				tt.after(p)
			}
			p.expect(t, tt.want...)
			if returned() || len(p.Semaphore) > 0 {
				t.Errorf("the delivery has returned: %v; it holds %d slots", returned(), len(p.Semaphore))
			}
			return p, returned, leave
		}
		t.Run(name+", the channel closes", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, returned, leave := start(t)
				leave()
				p.expect(t, tt.left...)
				if !returned() {
					t.Error("the delivery still waits")
				}
			})
		})
		if tt.resumed == nil {
			continue
		}
		t.Run(name+", suspended", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, leave := start(t)
				defer leave()
				p.claims.Suspend()
				pass(2 * time.Hour)
				p.expect(t)
				p.claims.token = 2
				p.claims.Resume()
				p.expect(t, append(append([]string{"reclaim 1"}, tt.resumed...), "complete 1", "count new_order_ok", processed, "ack")...)
			})
		})
	}
}

// failsFirst returns a handler that fails with err under the first token.
func failsFirst(err error) consume.Handler {
	return func(_ context.Context, job consume.Job) error {
		if job.Token == 1 {
			return err
		}
		return nil
	}
}

// Finished work is recorded even if its channel has closed. The wait for that holds no slot.
func TestRecordOutlivesTheChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.claims.waits["complete"] = make(chan struct{})
		gone, leave := context.WithCancel(t.Context())
		returned := p.handle(gone, p.order("1"))
		leave()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		if returned() || len(p.Semaphore) > 0 {
			t.Errorf("the delivery has returned: %v; it holds %d slots", returned(), len(p.Semaphore))
		}
		close(p.claims.waits["complete"])
		p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
	})
}

func TestContextHasEndedAlready(t *testing.T) {
	for _, withoutEtcd := range []bool{false, true} {
		t.Run(fmt.Sprint("without etcd ", withoutEtcd), func(t *testing.T) {
			for range 20 { // a select between the context and a free slot chooses at random
				synctest.Test(t, func(t *testing.T) {
					p := newProcess(t, done)
					want := []string{"claim 1", "release 1"}
					if withoutEtcd {
						p.withoutEtcd()
						want = nil
					}
					gone, leave := context.WithCancel(t.Context())
					leave()
					p.handle(gone, p.order("1"))
					p.expect(t, want...)
				})
			}
		})
	}
}

// Work that runs when the channel closes or the service stops is finished and recorded,
// but not tried again. The end of a stop cancels it.
func TestContextEndsDuringTheWork(t *testing.T) {
	tests := map[string]struct {
		cancel bool // the handlers, too
		result error
		want   []string
	}{
		"done":            {false, nil, []string{"complete 1", "count new_order_ok", processed, "ack"}},
		"failed":          {false, errBoom, []string{"release 1"}},
		"failed for good": {false, consume.Permanent(errBoom), []string{"release 1"}},
		"outage":          {false, consume.Unavailable(errBoom, 0), []string{"release 1"}},
		"cancelled":       {true, context.Canceled, []string{"release 1"}},
		"unknown":         {true, consume.Unknown(errBoom), []string{"release 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				finish := make(chan struct{})
				p := newProcess(t, func(ctx context.Context, _ consume.Job) error {
					select {
					case <-finish:
					case <-ctx.Done():
					}
					return tt.result
				})
				var cancel context.CancelFunc
				p.handlerCtx, cancel = context.WithCancel(t.Context())
				gone, leave := context.WithCancel(p.handlerCtx)
				returned := p.handle(gone, p.order("1"))
				leave()
				pass(time.Second)
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				if returned() {
					t.Error("the work was cancelled")
				}
				if tt.cancel {
					cancel()
				} else {
					close(finish)
				}
				p.expect(t, tt.want...)
				if cancel(); !returned() {
					t.Error("the delivery is not given up")
				}
			})
		})
	}
}

// Suspended work is cancelled, and done again under the token of the claim that is granted
// then. That does not count as an attempt.
func TestSuspendedDuringTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		p := newProcess(t, func(ctx context.Context, _ consume.Job) error {
			select {
			case <-finish:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		for range 2 * p.MaxAttempts {
			p.claims.Suspend()
			pass(time.Minute)
			p.expect(t)
			p.claims.token++
			p.claims.Resume()
			p.expect(t, "reclaim 1", fmt.Sprint("work 1: attempt 1, token ", p.claims.token))
		}
		close(finish)
		p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
	})
}

// Work that succeeds although its claim is suspended is completed: Complete decides
// whether it counts.
func TestFinishedWhileSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, late)
		p.handle(t.Context(), p.order("1"))
		p.claims.Suspend()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack")
	})
}

// A suspended claim is not claimed again if the delivery's channel has closed.
func TestSuspendedAfterTheChannelHasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, hangs)
		gone, leave := context.WithCancel(t.Context())
		p.handle(gone, p.order("1"))
		leave()
		p.claims.Suspend()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1", "release 1")
	})
}

// An event is dead-lettered as failed only after a check that its claim is still ours.
func TestSuspendedBeforeAFinalFailure(t *testing.T) {
	tests := map[string]struct {
		err  error // of the reclaim
		want []string
	}{
		"the claim goes on": {nil, []string{"reclaim 1", "work 1: attempt 1, token 1", "check 1", "dead-letter failed after 1: boom",
			"count new_order_failed", "msg=dead-lettered type=new_order id=1 reason=failed error=boom", "ack", "release 1"}},
		"another process has done it": {claim.ErrDone, []string{"reclaim 1: done", "release 1", "count new_order_skipped", skipped, "ack"}},
		"the claims are closed":       {claim.ErrClosed, []string{"reclaim 1: closed", "release 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, fails(consume.Permanent(errBoom)))
				check := make(chan struct{})
				p.claims.waits["check"] = check
				p.claims.answers["check"] = []error{claim.ErrSuspended}
				p.claims.answers["reclaim"] = []error{tt.err}
				p.handle(t.Context(), p.order("1"))
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				p.claims.Suspend()
				close(check)
				p.expect(t, "check 1: suspended")
				p.claims.Resume()
				p.expect(t, tt.want...)
			})
		})
	}
}

// Work that may have been done is tried again under the same claim, even after the
// delivery's channel has closed.
func TestUnknownKeepsTheClaim(t *testing.T) {
	for name, tt := range map[string]struct {
		err     error
		suspend bool
		want    []string
	}{
		"a timeout":            {consume.Unknown(errBoom), false, []string{"work 1: attempt 2, token 1"}},
		"a lost connection":    {consume.Unavailable(consume.Unknown(errBoom), time.Hour), false, []string{"work 1: attempt 1, token 1"}},
		"and it was suspended": {consume.Unavailable(consume.Unknown(errBoom), time.Hour), true, []string{"reclaim 1", "work 1: attempt 1, token 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, once(tt.err))
				gone, leave := context.WithCancel(t.Context())
				p.handle(gone, p.order("1"))
				leave()
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				if tt.suspend {
					p.claims.Suspend()
					p.expect(t)
					p.claims.Resume()
				} else {
					pass(2 * time.Hour)
				}
				p.expect(t, append(tt.want, "complete 1", "count new_order_ok", processed, "ack")...)
			})
		})
	}
}

func TestSemaphore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, func(context.Context, consume.Job) error {
			<-time.After(time.Second)
			return nil
		})
		p.Semaphore = make(consume.Semaphore, 3)
		for id := range 10 {
			p.handle(t.Context(), p.order(fmt.Sprint(id)))
		}
		for seconds, want := range []int{3, 6, 9, 10} {
			if works := p.count("work "); works != want {
				t.Errorf("%d handlers have begun after %d s, want %d", works, seconds, want)
			}
			pass(time.Second)
		}
	})
}
