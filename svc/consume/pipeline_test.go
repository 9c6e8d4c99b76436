package consume_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/claim/claimtest"
	"github.com/streamdal/gophercon2021/svc/consume"
)

const (
	processed = "msg=processed type=new_order id=1"
	skipped   = "msg=skipped type=new_order id=1"
)

func TestOutcome(t *testing.T) {
	tests := map[string]struct {
		body        string
		withoutEtcd bool
		done        bool // another process has done the id 1
		fails       bool // the handler fails permanently
		want        []string
	}{
		"processed": {
			body: `{"type":"new_order","id":"1"}`,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"processed without etcd": {
			body: `{"type":"new_order","id":"1"}`, withoutEtcd: true,
			want: []string{"work 1: attempt 1, token 0", "count new_order_ok", processed, "ack"},
		},
		"seen before": {
			body: `{"type":"new_order","id":"1"}`, done: true,
			want: []string{"claim 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"another type": {
			body: `{"type":"refund","id":"1"}`,
			want: []string{"count ignored", "msg=ignored type=refund id=1", "ack"},
		},
		"another type, without an id": {
			body: `{"type":"refund"}`,
			want: []string{"count ignored", `msg=ignored type=refund id=""`, "ack"},
		},
		"another type, without an id and etcd": {
			body: `{"type":"refund"}`, withoutEtcd: true,
			want: []string{"count ignored", `msg=ignored type=refund id=""`, "ack"},
		},
		"empty type": {
			body: `{"type":"","id":"1"}`,
			want: []string{"count ignored", `msg=ignored type="" id=1`, "ack"},
		},
		"another type with an empty id": {
			body: `{"type":"refund","id":""}`,
			want: malformed(`"id" is empty`),
		},
		"failed": {
			body: `{"type":"new_order","id":"1"}`, fails: true,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "check 1", "dead-letter failed after 1: no such product",
				"count new_order_failed",
				`msg=dead-lettered type=new_order id=1 reason=failed error="no such product"`, "ack", "release 1"},
		},
		"failed without etcd": {
			body: `{"type":"new_order"}`, fails: true, withoutEtcd: true,
			want: []string{"work : attempt 1, token 0", "dead-letter failed after 1: no such product",
				"count new_order_failed",
				`msg=dead-lettered type=new_order id="" reason=failed error="no such product"`, "ack"},
		},
		"not an event": {
			body: `new_order 1`,
			want: malformed(`body is not a JSON event: invalid character 'e' in literal null (expecting 'u')`),
		},
		"not an event, without etcd": {
			body: `[]`, withoutEtcd: true,
			want: malformed(`body is not a JSON event: not an object`),
		},
		"without a type": {body: `{"id":"1"}`, want: malformed(`"type" is missing`)},
		"empty id":       {body: `{"type":"new_order","id":""}`, want: malformed(`"id" is empty`)},
		"without an id": {
			body: `{"type":"new_order"}`,
			want: malformed(`"id" is missing: nothing could tell this event from another`),
		},
		"without an id and etcd": {
			body: `{"type":"new_order"}`, withoutEtcd: true,
			want: []string{"work : attempt 1, token 0", "count new_order_ok", `msg=processed type=new_order id=""`, "ack"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, func(_ context.Context, job consume.Job) error {
					if string(job.Body) != tt.body {
						t.Errorf("the handler got the body %q, want %q", job.Body, tt.body)
					}
					if tt.fails {
						return consume.Permanent(errors.New("no such product"))
					}
					return nil
				})
				if tt.withoutEtcd {
					p.withoutEtcd()
				}
				if tt.done {
					complete(t, p.records.Open(), "1")
				}
				p.run(&delivery{journal: p.journal, body: tt.body})
				p.expect(t, tt.want...)
			})
		})
	}
}

// malformed returns the journal of a body that is not an event.
func malformed(reason string) []string {
	quoted := fmt.Sprintf("%q", reason)
	return []string{"dead-letter malformed after 0: " + reason, "count malformed",
		`msg=dead-lettered type="" id="" reason=malformed error=` + quoted, "ack"}
}

// complete claims and records an id in a process.
func complete(t *testing.T, m *claimtest.Memory, id string) {
	t.Helper()
	if err := m.Complete(claimNow(t, m, id)); err != nil {
		t.Fatal(err)
	}
}

func TestCopyOfAnEventInFlightWaitsForItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		p := newProcess(t, work.work)
		p.handle(t.Context(), p.order("1"))
		second := p.handle(t.Context(), p.order("1"))
		pass(time.Second)
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		if second() {
			t.Error("the second delivery did not wait")
		}
		close(work)
		p.expectInAnyOrder(t, "complete 1", "count new_order_ok", processed, "ack", "claim 1: done", "count new_order_skipped", skipped, "ack")
	})
}

// An event is recorded before it is counted and acknowledged, so that a crash cannot
// leave more events counted than recorded.
func TestNothingIsCountedBeforeItIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.claims.complete = make(chan struct{})
		p.handle(t.Context(), p.order("1"))
		pass(time.Hour)
		p.expect(t, "claim 1", "work 1: attempt 1, token 1")
		close(p.claims.complete)
		p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
	})
}

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
		"while a copy is in flight": {
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

// once returns a handler that fails with err the first time and then succeeds.
func once(err error) consume.Handler {
	var first sync.Once
	return func(context.Context, consume.Job) (result error) {
		first.Do(func() { result = err })
		return result
	}
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		p := newProcess(t, func(ctx context.Context, job consume.Job) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-time.After(time.Duration(len(job.ID)) * time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		})
		p.Semaphore = make(consume.Semaphore, 3)
		for i := range 20 {
			p.handle(t.Context(), p.order(strings.Repeat("x", i+1)))
		}
		if works := p.count("work "); works != 3 {
			t.Errorf("%d handlers run, want 3", works)
		}
		pass(time.Hour)
		if acked := p.count("ack"); acked != 20 || most != 3 {
			t.Errorf("%d events were acknowledged, with up to %d handlers at once; want 20, 3", acked, most)
		}
	})
}

// An event holds a slot only while its handler runs. Its other waits do not delay
// other events.
func TestSlotIsFreeWhileWaiting(t *testing.T) {
	tests := map[string]struct {
		result error // of the handler of order 1
		before func(t *testing.T, p *process)
	}{
		"after a failure":     {result: errors.New("boom")},
		"in an outage":        {result: consume.Unavailable(errors.New("unreachable"), time.Hour)},
		"for a dead letter":   {result: consume.Permanent(errors.New("no"))},
		"for another process": {before: func(t *testing.T, p *process) { claimNow(t, p.records.Open(), "1") }},
		"for a check": {
			result: consume.Permanent(errors.New("no")),
			before: func(_ *testing.T, p *process) { p.claims.check = make(chan struct{}) },
		},
		"for the record": {before: func(_ *testing.T, p *process) { p.claims.complete = make(chan struct{}) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, func(_ context.Context, job consume.Job) error {
					if job.ID == "1" {
						return tt.result
					}
					return nil
				})
				p.Semaphore = make(consume.Semaphore, 1)
				if tt.before != nil {
					tt.before(t, p)
				}
				d := p.order("1")
				d.broken = true
				leave, cancel := context.WithCancel(t.Context())
				defer cancel()
				first := p.handle(leave, d)
				p.handle(t.Context(), p.order("2"))
				if first() || p.count("work 2") != 1 {
					t.Errorf("the first delivery has returned: %v; the second was handled %d times", first(), p.count("work 2"))
				}
				if p.claims.complete != nil {
					close(p.claims.complete)
				}
			})
		})
	}
}

func TestWithoutEtcdCopiesAreProcessed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		p := newProcess(t, work.work)
		p.withoutEtcd()
		p.handle(t.Context(), p.order("1"))
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "work 1: attempt 1, token 0", "work 1: attempt 1, token 0")
		close(work)
		if acked := p.count("ack"); acked != 2 {
			t.Errorf("%d of 2 events were acknowledged", acked)
		}
	})
}

// When the claims are closed, the outcome of the event is unknown and the event is
// not acknowledged, so it is delivered again.
func TestClaimsAreClosed(t *testing.T) {
	tests := map[string]struct {
		call string
		work consume.Handler
		want []string
	}{
		"before the claim":  {"claim", done, nil},
		"before the check":  {"check", fails(consume.Permanent(errBoom)), []string{"claim 1", "work 1: attempt 1, token 1", "release 1"}},
		"before the record": {"complete", done, []string{"claim 1", "work 1: attempt 1, token 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, tt.work)
				p.claims.fail = map[string]error{tt.call: claim.ErrClosed}
				p.run(p.order("1"))
				p.expect(t, tt.want...)
			})
		})
	}
}

// An event whose id the claims cannot store is malformed.
func TestInvalidID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.claims.fail = map[string]error{"claim": claim.ErrInvalidID}
		p.run(p.order("1"))
		p.expect(t, "dead-letter malformed after 0: the id is not UTF-8, or too long", "count malformed",
			`msg=dead-lettered type=new_order id=1 reason=malformed error="the id is not UTF-8, or too long"`, "ack")
	})
}
