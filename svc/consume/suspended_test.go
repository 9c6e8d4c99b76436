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

// Suspended work is cancelled and done again after the suspension: under the same
// token if the session resumes, under a new one if the session has ended. It does not
// count as an attempt.
func TestSuspendedDuringTheWork(t *testing.T) {
	for _, expired := range []bool{false, true} {
		t.Run(fmt.Sprint("expired ", expired), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work := make(gate)
				p := newProcess(t, work.work)
				p.handle(t.Context(), p.order("1"))
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				token := 1
				for range 2 * p.MaxAttempts {
					p.claims.Suspend()
					pass(time.Minute)
					p.expect(t)
					if expired {
						p.claims.Expire()
						token++
					}
					p.claims.Resume()
					p.expect(t, "reclaim 1", fmt.Sprint("work 1: attempt 1, token ", token))
				}
				close(work)
				p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
			})
		})
	}
}

// No attempt begins while the claim is suspended.
func TestSuspendedWhileWaiting(t *testing.T) {
	tests := map[string]struct {
		work    consume.Handler
		full    bool // no slot is free
		want    []string
		attempt int // the number of the next attempt
	}{
		"after a failure": {
			work: once(errBoom), attempt: 2,
			want: []string{"claim 1", "work 1: attempt 1, token 1"},
		},
		"in an outage": {
			work: once(consume.Unavailable(errBoom, time.Hour)), attempt: 1,
			want: []string{"claim 1", "work 1: attempt 1, token 1"},
		},
		"for a slot": {
			work: done, full: true, attempt: 1,
			want: []string{"claim 1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, tt.work)
				if tt.full {
					for range concurrency {
						p.Semaphore <- struct{}{}
					}
				}
				returned := p.handle(t.Context(), p.order("1"))
				p.expect(t, tt.want...)
				p.claims.Suspend()
				for range len(p.Semaphore) {
					<-p.Semaphore
				}
				pass(2 * time.Hour)
				p.expect(t)
				p.claims.Resume()
				p.expect(t, "reclaim 1", fmt.Sprintf("work 1: attempt %d, token 1", tt.attempt),
					"complete 1", "count new_order_ok", processed, "ack")
				if !returned() {
					t.Error("the delivery does not end")
				}
			})
		})
	}
}

// A permanent failure is dead-lettered only after a check that the claim is still ours.
func TestSuspendedBeforeAFinalFailure(t *testing.T) {
	tests := map[string]struct {
		meanwhile func(t *testing.T, p *process)
		want      []string
	}{
		"the session goes on": {
			func(*testing.T, *process) {},
			[]string{"check 1: suspended", "reclaim 1", "work 1: attempt 1, token 1", "check 1", "dead-letter failed after 1: boom",
				"count new_order_failed", "msg=dead-lettered type=new_order id=1 reason=failed error=boom", "ack", "release 1"},
		},
		"another process has done it": {
			func(t *testing.T, p *process) {
				p.claims.Expire()
				complete(t, p.records.Open(), "1")
			},
			[]string{"check 1: suspended", "reclaim 1: done", "release 1", "count new_order_skipped", skipped, "ack"},
		},
		"another process works": {
			func(t *testing.T, p *process) {
				p.claims.Expire()
				claimNow(t, p.records.Open(), "1")
			},
			[]string{"check 1: suspended"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, fails(consume.Permanent(errBoom)))
				p.claims.check = make(chan struct{})
				ctx, leave := context.WithCancel(t.Context())
				p.handle(ctx, p.order("1"))
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				p.claims.Suspend()
				pass(time.Minute)
				close(p.claims.check)
				tt.meanwhile(t, p)
				p.claims.Resume()
				p.expect(t, tt.want...)
				leave()
			})
		})
	}
}

// A suspended claim is not claimed again if the delivery's channel has closed.
func TestSuspendedAndContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, hangs)
		gone, leave := context.WithCancel(t.Context())
		returned := p.handle(gone, p.order("1"))
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		leave()
		p.claims.Suspend()
		p.expect(t, "release 1")
		if !returned() {
			t.Error("the delivery is not given up")
		}
		p.claims.Resume()
		mustBeFree(t, p, "1")
	})
}

func TestContextEndsWhileSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, hangs)
		gone, leave := context.WithCancel(t.Context())
		returned := p.handle(gone, p.order("1"))
		p.claims.Suspend()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		leave()
		p.expect(t, "release 1")
		if !returned() {
			t.Error("the delivery is not given up")
		}
	})
}

// Work whose outcome is unknown is retried under its claim when the session resumes,
// even after the delivery's context has ended.
func TestSuspendedAfterAnUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, once(consume.Unavailable(consume.Unknown(errBoom), time.Hour)))
		gone, leave := context.WithCancel(t.Context())
		p.handle(gone, p.order("1"))
		leave()
		p.claims.Suspend()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		p.claims.Resume()
		p.expect(t, "reclaim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack")
	})
}

// Work that finishes while its claim is suspended is still completed: Complete decides
// whether it is recorded or was done by another process.
func TestFinishedWhileSuspended(t *testing.T) {
	tests := map[string]struct {
		meanwhile func(t *testing.T, p *process)
		want      []string
	}{
		"the session goes on": {
			func(*testing.T, *process) {},
			[]string{"complete 1", "count new_order_ok", processed, "ack"},
		},
		"the session has ended": {
			func(_ *testing.T, p *process) { p.claims.Expire() },
			[]string{"complete 1", "count new_order_ok", processed, "ack"},
		},
		"another process has done it": {
			func(t *testing.T, p *process) {
				p.claims.Expire()
				complete(t, p.records.Open(), "1")
			},
			[]string{"complete 1: done", "count new_order_skipped", skipped, "ack"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work := make(gate)
				p := newProcess(t, work.deaf)
				p.handle(t.Context(), p.order("1"))
				p.claims.Suspend()
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				close(work)
				pass(time.Minute)
				p.expect(t)
				tt.meanwhile(t, p)
				p.claims.Resume()
				p.expect(t, tt.want...)
			})
		})
	}
}

func TestReclaimFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, hangs)
		p.claims.fail = map[string]error{"reclaim": claim.ErrClosed}
		returned := p.handle(t.Context(), p.order("1"))
		p.claims.Suspend()
		p.claims.Resume()
		p.expect(t, "claim 1", "work 1: attempt 1, token 1", "release 1")
		if !returned() {
			t.Error("the delivery is not given up")
		}
	})
}
