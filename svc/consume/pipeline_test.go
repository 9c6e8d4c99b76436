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
	"github.com/streamdal/gophercon2021/svc/consume"
)

const (
	processed = "msg=processed service=orders type=new_order id=1"
	skipped   = "msg=skipped service=orders type=new_order id=1"
)

func TestOutcome(t *testing.T) {
	tests := map[string]struct {
		body        string
		withoutEtcd bool
		done        bool // the id 1, by another process
		fails       bool // the handler, for good
		want        []string
	}{
		"processed": {
			body: `{"type":"new_order","id":"1"}`,
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"processed without etcd": {
			body: `{"type":"new_order","id":"1"}`, withoutEtcd: true,
			want: []string{"try 1: attempt 1, token 0", "count new_order_ok", processed, "ack"},
		},
		"seen before": {
			body: `{"type":"new_order","id":"1"}`, done: true,
			want: []string{"claim 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"another type": {
			body: `{"type":"refund","id":"1"}`,
			want: []string{"count ignored", "msg=ignored service=orders type=refund id=1", "ack"},
		},
		"another type, without an id": {
			body: `{"type":"refund"}`,
			want: []string{"count ignored", `msg=ignored service=orders type=refund id=""`, "ack"},
		},
		"another type, without an id and etcd": {
			body: `{"type":"refund"}`, withoutEtcd: true,
			want: []string{"count ignored", `msg=ignored service=orders type=refund id=""`, "ack"},
		},
		"empty type": {
			body: `{"type":"","id":"1"}`,
			want: []string{"count ignored", `msg=ignored service=orders type="" id=1`, "ack"},
		},
		"another type with an empty id": {
			body: `{"type":"refund","id":""}`,
			want: malformed(`"id" is empty`),
		},
		"failed": {
			body: `{"type":"new_order","id":"1"}`, fails: true,
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1", "dead-letter failed after 1: no such product", "ack",
				"count new_order_failed",
				`msg=dead-lettered service=orders type=new_order id=1 reason=failed error="no such product"`, "release 1"},
		},
		"failed without etcd": {
			body: `{"type":"new_order"}`, fails: true, withoutEtcd: true,
			want: []string{"try : attempt 1, token 0", "dead-letter failed after 1: no such product", "ack",
				"count new_order_failed",
				`msg=dead-lettered service=orders type=new_order id="" reason=failed error="no such product"`},
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
			want: []string{"try : attempt 1, token 0", "count new_order_ok", `msg=processed service=orders type=new_order id=""`, "ack"},
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
						return consume.Final(errors.New("no such product"))
					}
					return nil
				})
				if tt.withoutEtcd {
					p.withoutEtcd(t.Context())
				}
				if tt.done {
					complete(t, p.records.Open(), "1")
				}
				p.Handle(t.Context(), &delivery{journal: p.journal, body: tt.body})
				p.expect(t, tt.want...)
			})
		})
	}
}

// malformed is what happens to a body that is not an event.
func malformed(reason string) []string {
	quoted := fmt.Sprintf("%q", reason)
	return []string{"dead-letter malformed after 0: " + reason, "ack", "count malformed",
		`msg=dead-lettered service=orders type="" id="" reason=malformed error=` + quoted}
}

func complete(t *testing.T, s claim.Store, id string) {
	t.Helper()
	a, err := s.Claim(id)
	if err != nil || a.State != claim.Granted {
		t.Fatalf("claim of %s: %v, %v", id, a.State, err)
	}
	if _, err := s.Complete(a.Grant); err != nil {
		t.Fatal(err)
	}
}

func TestCopyOfADoneEventAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.Handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack")
		p.Handle(t.Context(), p.order("1"))
		p.expect(t, "count new_order_skipped", skipped, "ack")
	})
}

func TestCopyOfAnEventInFlightWaitsForItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		p := newProcess(t, work.work)
		p.handle(t.Context(), p.order("1"))
		second := p.handle(t.Context(), p.order("1"))
		pass(time.Second)
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
		if second() {
			t.Error("the second delivery did not wait")
		}
		close(work)
		p.expectInAnyOrder(t, "complete 1", "count new_order_ok", processed, "ack", "count new_order_skipped", skipped, "ack")
	})
}

// What is counted and acknowledged is recorded: a crash before must not leave
// more counted than recorded.
func TestNothingIsCountedBeforeItIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.store.complete = make(chan struct{})
		p.handle(t.Context(), p.order("1"))
		pass(time.Hour)
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
		close(p.store.complete)
		p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
	})
}

func TestBusy(t *testing.T) {
	tests := map[string]struct {
		end  func(t *testing.T, other claim.Store, g claim.Grant)
		want []string
	}{
		"the other completes": {
			end: func(t *testing.T, other claim.Store, g claim.Grant) {
				if _, err := other.Complete(g); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"claim 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"the other releases": {
			end: func(t *testing.T, other claim.Store, g claim.Grant) {
				if err := other.Release(g); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"claim 1: granted", "try 1: attempt 1, token 2", "complete 1", "count new_order_ok", processed, "ack"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, done)
				s := p.records.Open()
				a, err := s.Claim("1")
				if err != nil {
					t.Fatal(err)
				}
				returned := p.handle(t.Context(), p.order("1"))
				pass(time.Minute)
				if asked, lines := p.count("claim 1: busy"), p.count(""); asked != lines || asked < 50 || asked > 100 {
					t.Errorf("in a minute of waiting %d things happened, and the store was asked %d times; want it asked about once a second",
						lines, asked)
				}
				if returned() {
					t.Fatal("it did not wait")
				}
				p.take()
				tt.end(t, s, a.Grant)
				pass(1200 * time.Millisecond)
				p.expect(t, tt.want...)
			})
		})
	}
}

// When the channel is gone, or the service stops, nothing is waited for.
func TestContextEnds(t *testing.T) {
	tests := map[string]struct {
		work   consume.Handler
		before func(t *testing.T, p *process) // the delivery comes
		broken bool                           // the broker takes no dead letters
		body   string                         // of the delivery, if it is not of the order 1
		want   []string                       // before the context ends
		then   []string                       // and after that
		taken  bool                           // the id stays with its other claimant
	}{
		"while another process has the id": {
			work: done,
			before: func(t *testing.T, p *process) {
				if _, err := p.records.Open().Claim("1"); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"claim 1: busy"}, taken: true,
		},
		"while a copy is in flight": {
			work: hangs,
			before: func(t *testing.T, p *process) {
				p.handle(t.Context(), p.order("1"))
			},
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"}, taken: true,
		},
		"while the store is asked": {
			work: done,
			before: func(t *testing.T, p *process) {
				p.store.answer = make(chan struct{})
			},
			want: []string{"claim 1: granted"},
			then: []string{"release 1"},
		},
		"while it waits for a slot": {
			work: hangs,
			before: func(t *testing.T, p *process) {
				for id := range concurrency {
					p.handle(t.Context(), p.order(fmt.Sprint("other ", id)))
				}
				p.take()
			},
			want: []string{"claim 1: granted"},
			then: []string{"release 1"},
		},
		"during the pause after a failure": {
			work: fails(errors.New("boom")),
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"},
			then: []string{"release 1"},
		},
		"during an outage": {
			work: fails(consume.Outage(errors.New("away"), time.Hour)),
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"},
			then: []string{"release 1"},
		},
		"while the broker takes no dead letters": {
			work: fails(consume.Final(errors.New("no"))), broken: true,
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"},
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
					t.Fatal("it did not wait")
				}
				leave()
				if p.store.answer != nil {
					synctest.Wait()
					close(p.store.answer)
				}
				if !returned() {
					t.Error("it goes on waiting")
				}
				p.expect(t, tt.then...)
				if !tt.taken {
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
				want := []string{"claim 1: granted", "release 1"}
				if withoutEtcd {
					p.withoutEtcd(t.Context())
					want = nil
				}
				gone, leave := context.WithCancel(t.Context())
				leave()
				p.Handle(gone, p.order("1"))
				p.expect(t, want...)
				mustBeFree(t, p, "1")
			})
		})
	}
}

// Work that runs when the channel goes or the service stops is finished: it is
// recorded and, if there still is a channel, acknowledged.
func TestContextEndsDuringTheWork(t *testing.T) {
	tests := map[string]struct {
		result error
		want   []string
	}{
		"done":           {nil, []string{"complete 1", "count new_order_ok", processed, "ack"}},
		"failed":         {errors.New("boom"), []string{"release 1"}},
		"failed finally": {consume.Final(errors.New("boom")), []string{"release 1"}},
		"outage":         {consume.Outage(errors.New("away"), 0), []string{"release 1"}},
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
				p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
				close(finish)
				p.expect(t, tt.want...)
				if !returned() {
					t.Error("it goes on")
				}
			})
		})
	}
}

// The end of a stop cancels the work, which is then the next process's.
func TestWorkIsCancelled(t *testing.T) {
	for _, withoutEtcd := range []bool{false, true} {
		t.Run(fmt.Sprint("without etcd ", withoutEtcd), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, make(gate).work)
				work, cancel := context.WithCancel(t.Context())
				defer cancel()
				p.store.work = work
				want := []string{"claim 1: granted", "try 1: attempt 1, token 1", "release 1"}
				if withoutEtcd {
					p.withoutEtcd(work)
					want = []string{"try 1: attempt 1, token 0"}
				}
				returned := p.handle(t.Context(), p.order("1"))
				cancel()
				if !returned() {
					t.Error("it goes on")
				}
				p.expect(t, want...)
				mustBeFree(t, p, "1")
			})
		})
	}
}

func TestSessionLostDuringTheWork(t *testing.T) {
	for _, expired := range []bool{false, true} {
		t.Run(fmt.Sprint("expired ", expired), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work := make(gate)
				p := newProcess(t, func(ctx context.Context, job consume.Job) error {
					err := work.work(ctx, job)
					if err != nil && !errors.Is(err, claim.ErrSessionLost) {
						t.Errorf("the work was cancelled because %v", err)
					}
					return err
				})
				p.handle(t.Context(), p.order("1"))
				p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
				token := 1
				for range 2 * p.MaxAttempts { // none of them is a try
					p.session.LoseSession(expired)
					if expired {
						token++
					}
					p.expect(t, "claim 1: granted", fmt.Sprint("try 1: attempt 1, token ", token))
				}
				close(work)
				p.expect(t, "complete 1", "count new_order_ok", processed, "ack")
			})
		})
	}
}

func TestSessionLostWhileWaiting(t *testing.T) {
	tests := map[string]struct {
		work consume.Handler
		full bool // no slot is free
		want []string
		then []string
	}{
		"after a failure": {
			work: once(errors.New("boom")),
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"},
			then: []string{"claim 1: granted", "try 1: attempt 1, token 2", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"in an outage": {
			work: once(consume.Outage(errors.New("away"), time.Hour)),
			want: []string{"claim 1: granted", "try 1: attempt 1, token 1"},
			then: []string{"claim 1: granted", "try 1: attempt 1, token 2", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"for a slot": {
			work: done, full: true,
			want: []string{"claim 1: granted"},
			then: []string{"claim 1: granted"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, tt.work)
				if tt.full {
					for range concurrency {
						p.Slots <- struct{}{}
					}
				}
				returned := p.handle(t.Context(), p.order("1"))
				p.expect(t, tt.want...)
				p.session.LoseSession(true)
				p.expect(t, tt.then...)
				if tt.full {
					<-p.Slots
				}
				if !returned() {
					t.Error("it goes on")
				}
			})
		})
	}
}

// Without the session and the channel nobody would work on what is claimed anew.
func TestSessionLostAndContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, hangs)
		gone, leave := context.WithCancel(t.Context())
		returned := p.handle(gone, p.order("1"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
		leave()
		p.session.LoseSession(false)
		p.expect(t, "claim 1: granted", "release 1")
		if !returned() {
			t.Error("it goes on")
		}
		mustBeFree(t, p, "1")
	})
}

// once is a handler that fails the first time.
func once(err error) consume.Handler {
	var first sync.Once
	return func(context.Context, consume.Job) (result error) {
		first.Do(func() { result = err })
		return result
	}
}

// Work that is finished although its session is lost is offered for completion:
// the record decides.
func TestFinishedThoughTheSessionIsLost(t *testing.T) {
	tests := map[string]struct {
		expire bool // and the claim with it
		want   []string
	}{
		"the claim is still there":   {false, []string{"complete 1", "count new_order_ok", processed, "ack"}},
		"the claim is there no more": {true, []string{"complete 1", "count new_order_ok", processed, "ack"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work := make(gate)
				p := newProcess(t, work.deaf)
				p.handle(t.Context(), p.order("1"))
				p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")
				p.session.LoseSession(tt.expire)
				close(work)
				p.expect(t, tt.want...)
			})
		})
	}
}

func TestClaimLostToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		p := newProcess(t, work.deaf)
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1")

		p.session.LoseSession(true)
		other := p.records.Open()
		a, err := other.Claim("1")
		if err != nil {
			t.Fatal(err)
		}
		close(work)
		p.expect(t, "complete 1: lost", "claim 1: busy")
		if _, err := other.Complete(a.Grant); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		p.expect(t, "claim 1: done", "count new_order_skipped", skipped, "ack")
	})
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		var mu sync.Mutex
		running, most := 0, 0
		p := newProcess(t, func(ctx context.Context, job consume.Job) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() {
				mu.Lock()
				running--
				mu.Unlock()
			}()
			pass := time.NewTimer(time.Duration(len(job.ID)) * time.Second)
			select {
			case <-pass.C:
				return nil
			case <-work:
				return nil
			}
		})
		p.Slots = make(consume.Slots, 3)
		for i := range 20 {
			p.handle(t.Context(), p.order(strings.Repeat("x", i+1)))
		}
		if tries := p.count("try "); tries != 3 {
			t.Errorf("%d handlers run, want 3", tries)
		}
		pass(time.Minute)
		close(work)
		if acked := p.count("ack"); acked != 20 || most != 3 {
			t.Errorf("%d events were acknowledged, with up to %d handlers at once; want 20, 3", acked, most)
		}
	})
}

// A slot is for the work alone: whatever else an event waits for, it does not
// hold up the others.
func TestSlotIsFreeWhileWaiting(t *testing.T) {
	tests := map[string]struct {
		results map[string]error
		before  func(p *process)
	}{
		"after a failure": {results: map[string]error{"1": errors.New("boom")}},
		"in an outage":    {results: map[string]error{"1": consume.Outage(errors.New("away"), time.Hour)}},
		"for a dead letter": {
			results: map[string]error{"1": consume.Final(errors.New("no"))},
		},
		"for another process": {
			before: func(p *process) { p.records.Open().Claim("1") },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, func(_ context.Context, job consume.Job) error { return tt.results[job.ID] })
				p.Slots = make(consume.Slots, 1)
				if tt.before != nil {
					tt.before(p)
				}
				d := p.order("1")
				d.broken = true
				leave, cancel := context.WithCancel(t.Context())
				defer cancel()
				first := p.handle(leave, d)
				second := p.handle(t.Context(), p.order("2"))
				if first() || !second() {
					t.Errorf("returned: the first %v, the second %v; want only the second", first(), second())
				}
			})
		})
	}
}

func TestSlotIsFreeWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, done)
		p.Slots = make(consume.Slots, 1)
		p.store.complete = make(chan struct{})
		p.handle(t.Context(), p.order("1"))
		p.handle(t.Context(), p.order("2"))
		p.expect(t, "claim 1: granted", "try 1: attempt 1, token 1", "claim 2: granted", "try 2: attempt 1, token 2")
		close(p.store.complete)
		if acked := p.count("ack"); acked != 2 {
			t.Errorf("%d of 2 events were acknowledged", acked)
		}
	})
}

func TestWithoutEtcdCopiesAreProcessed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := make(gate)
		p := newProcess(t, work.work)
		p.withoutEtcd(t.Context())
		p.handle(t.Context(), p.order("1"))
		p.handle(t.Context(), p.order("1"))
		p.expect(t, "try 1: attempt 1, token 0", "try 1: attempt 1, token 0")
		close(work)
		if acked := p.count("ack"); acked != 2 {
			t.Errorf("%d of 2 events were acknowledged", acked)
		}
	})
}

// The store's life ends at the end of a stop: whatever became of the event is
// unknown, and it is delivered again.
func TestStoreEnds(t *testing.T) {
	ended := errors.New("the service has stopped")
	tests := map[string]struct {
		store ending
		want  []string
	}{
		"before the claim":    {ending{claim: ended}, nil},
		"before the complete": {ending{complete: ended}, []string{"try 1: attempt 1, token 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, done)
				tt.store.Store = p.session
				p.Claims = claim.NewKeeper(tt.store, claim.NewCache(10, 0))
				p.Handle(t.Context(), p.order("1"))
				p.expect(t, tt.want...)
			})
		})
	}
}

// ending is a store whose life has ended for one of its calls.
type ending struct {
	claim.Store
	claim, complete error
}

func (s ending) Claim(id string) (claim.Answer, error) {
	if s.claim != nil {
		return claim.Answer{}, s.claim
	}
	return s.Store.Claim(id)
}

func (s ending) Complete(g claim.Grant) (time.Duration, error) { return 0, s.complete }
