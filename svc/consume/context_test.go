package consume_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
)

// A delivery stops waiting when its channel closes or the service stops.
func TestContextEnds(t *testing.T) {
	tests := map[string]struct {
		work   consume.Handler
		before func(t *testing.T, p *process) // runs before the delivery arrives
		broken bool                           // the broker does not accept dead letters
		body   string                         // of the delivery; empty: the order 1
		want   []string                       // before the context ends
		then   []string                       // after the context has ended
		taken  bool                           // another delivery still holds the id
	}{
		"while another process has the id": {
			work:   done,
			before: func(t *testing.T, p *process) { claimNow(t, p.records.Open(), "1") },
			taken:  true,
		},
		"while a copy is being processed": {
			work: hangs,
			before: func(t *testing.T, p *process) {
				p.handle(t.Context(), p.order("1"))
			},
			want: []string{"claim 1", "work 1: attempt 1, token 1"}, taken: true,
		},
		"while the claims are suspended": {
			work:   done,
			before: func(t *testing.T, p *process) { p.claims.Suspend() },
		},
		"while it waits for a slot": {
			work: hangs,
			before: func(t *testing.T, p *process) {
				for id := range concurrency {
					p.handle(t.Context(), p.order(fmt.Sprint("other ", id)))
				}
				p.take()
			},
			want: []string{"claim 1"},
			then: []string{"release 1"},
		},
		"during the pause after a failure": {
			work: fails(errors.New("boom")),
			want: []string{"claim 1", "work 1: attempt 1, token 1"},
			then: []string{"release 1"},
		},
		"during an outage": {
			work: fails(consume.Unavailable(errors.New("unreachable"), time.Hour)),
			want: []string{"claim 1", "work 1: attempt 1, token 1"},
			then: []string{"release 1"},
		},
		"while the claim is checked": {
			work:   fails(consume.Permanent(errors.New("no"))),
			before: func(t *testing.T, p *process) { p.claims.check = make(chan struct{}) },
			want:   []string{"claim 1", "work 1: attempt 1, token 1"},
			then:   []string{"release 1"},
		},
		"while the broker takes no dead letters": {
			work: fails(consume.Permanent(errors.New("no"))), broken: true,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "check 1"},
			then: []string{"release 1"},
		},
		"while the broker takes no malformed messages": {
			work: done, broken: true, body: `{}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, tt.work)
				if tt.before != nil {
					tt.before(t, p)
				}
				d := p.order("1")
				d.broken = tt.broken
				if tt.body != "" {
					d.body = tt.body
				}
				gone, leave := context.WithCancel(t.Context())
				returned := p.handle(gone, d)
				p.expect(t, tt.want...)
				if returned() {
					t.Fatal("the delivery does not wait")
				}
				leave()
				if !returned() {
					t.Error("the delivery still waits")
				}
				p.expect(t, tt.then...)
				if !tt.taken {
					p.claims.Resume()
					mustBeFree(t, p, "1")
				}
			})
		})
	}
}

func TestContextHasEndedAlready(t *testing.T) {
	for _, withoutEtcd := range []bool{false, true} {
		t.Run(fmt.Sprint("without etcd ", withoutEtcd), func(t *testing.T) {
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
				mustBeFree(t, p, "1")
			})
		})
	}
}

// Work that runs when the channel closes or the service stops is finished. It is
// recorded and, if the channel is still open, acknowledged.
func TestContextEndsDuringTheWork(t *testing.T) {
	tests := map[string]struct {
		result error
		want   []string
	}{
		"done":            {nil, []string{"complete 1", "count new_order_ok", processed, "ack"}},
		"failed":          {errors.New("boom"), []string{"release 1"}},
		"failed for good": {consume.Permanent(errors.New("boom")), []string{"release 1"}},
		"outage":          {consume.Unavailable(errors.New("unreachable"), 0), []string{"release 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				finish := make(chan struct{})
				p := newProcess(t, func(ctx context.Context, _ consume.Job) error {
					select {
					case <-finish:
					case <-ctx.Done():
						t.Error("the work was cancelled")
					}
					return tt.result
				})
				gone, leave := context.WithCancel(t.Context())
				returned := p.handle(gone, p.order("1"))
				leave()
				pass(time.Second)
				p.expect(t, "claim 1", "work 1: attempt 1, token 1")
				close(finish)
				p.expect(t, tt.want...)
				if !returned() {
					t.Error("the delivery is not given up")
				}
			})
		})
	}
}

// The end of a stop cancels the work. No attempt begins after it, and another process
// can claim the event.
func TestHandlersEnd(t *testing.T) {
	tests := map[string]struct {
		work consume.Handler
		full bool // no slot is free
		want []string
	}{
		"during the work":           {work: hangs, want: []string{"work 1: attempt 1, token 1"}},
		"after a failure":           {work: fails(errBoom), want: []string{"work 1: attempt 1, token 1"}},
		"in an outage":              {work: fails(consume.Unavailable(errBoom, time.Hour)), want: []string{"work 1: attempt 1, token 1"}},
		"after an unknown outcome":  {work: fails(consume.Unknown(errBoom)), want: []string{"work 1: attempt 1, token 1"}},
		"while it waits for a slot": {work: done, full: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, tt.work)
				handlerCtx, cancel := context.WithCancel(t.Context())
				p.handlerCtx = handlerCtx
				if tt.full {
					p.Semaphore = make(consume.Semaphore) // without a buffer there is no slot
				}
				returned := p.handle(handlerCtx, p.order("1"))
				p.expect(t, append([]string{"claim 1"}, tt.want...)...)
				cancel()
				p.expect(t, "release 1")
				if !returned() {
					t.Error("the delivery is not given up")
				}
				mustBeFree(t, p, "1")
			})
		})
	}
}
