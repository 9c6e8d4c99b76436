package consume_test

import (
	"context"
	"errors"
	"fmt"
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
			want: malformed("", `"id" is empty`),
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
			want: malformed("", `body is not a JSON event: invalid character 'e' in literal null (expecting 'u')`),
		},
		"not an event, without etcd": {
			body: `[]`, withoutEtcd: true,
			want: malformed("", `body is not a JSON event: not an object`),
		},
		"without a type": {body: `{"id":"1"}`, want: malformed("", `"type" is missing`)},
		"empty id":       {body: `{"type":"new_order","id":""}`, want: malformed("", `"id" is empty`)},
		"without an id": {
			body: `{"type":"new_order"}`,
			want: malformed("new_order", `"id" is missing: nothing could tell this event from another`),
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
func malformed(typ, reason string) []string {
	quoted := fmt.Sprintf("%q", reason)
	if typ == "" {
		typ = `""`
	}
	return []string{"dead-letter malformed after 0: " + reason, "count malformed",
		"msg=dead-lettered type=" + typ + ` id="" reason=malformed error=` + quoted, "ack"}
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
