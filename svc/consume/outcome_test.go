package consume_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
)

const (
	processed = "msg=processed type=new_order id=1"
	skipped   = "msg=skipped type=new_order id=1"
)

// The order of the lines is a promise: an event is recorded before it is counted, and
// counted before it is acknowledged; the claim of a dead letter is released last.
func TestOutcome(t *testing.T) {
	final := fails(consume.Permanent(errors.New("no such product")))
	tests := map[string]struct {
		body        string // default: order 1
		returns     int
		withoutEtcd bool
		webhook     bool            // the handlers run elsewhere
		work        consume.Handler // default: done
		call        string          // of the claims, answered with err
		err         error
		want        []string
	}{
		"processed": {
			want: []string{"claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"processed without etcd": {
			withoutEtcd: true,
			want:        []string{"work 1: attempt 1, token 0", "count new_order_ok", processed, "ack"},
		},
		"without an id and etcd": {
			body: `{"type":"new_order"}`, withoutEtcd: true,
			want: []string{"work : attempt 1, token 0", "count new_order_ok", `msg=processed type=new_order id=""`, "ack"},
		},
		"done before": {
			call: "claim", err: claim.ErrDone,
			want: []string{"claim 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"done by another process meanwhile": {
			call: "complete", err: claim.ErrDone,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "complete 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"another type": {
			body: `{"type":"refund","id":"1"}`,
			want: []string{"count ignored", "msg=ignored type=refund id=1", "ack"},
		},
		"another type, without an id": {
			body: `{"type":"refund"}`,
			want: []string{"count ignored", `msg=ignored type=refund id=""`, "ack"},
		},
		"another type, a long one": { // what a message brings is truncated in the log
			body: `{"type":"` + strings.Repeat("x", 1023) + `éé"}`,
			want: []string{"count ignored", "msg=ignored type=" + strings.Repeat("x", 1023) + `… id=""`, "ack"},
		},
		"another type, as long as allowed": {
			body: `{"type":"` + strings.Repeat("x", 1024) + `"}`,
			want: []string{"count ignored", "msg=ignored type=" + strings.Repeat("x", 1024) + ` id=""`, "ack"},
		},
		"failed": {
			work: final,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "check 1", "dead-letter failed after 1: no such product",
				"count new_order_failed",
				`msg=dead-lettered type=new_order id=1 reason=failed error="no such product"`, "ack", "release 1"},
		},
		"one that ends its process": {
			returns: 20,
			want: []string{"claim 1", "dead-letter crashed after 0: it has come back 20 times: its work may end the process", "count new_order_failed",
				`msg=dead-lettered type=new_order id=1 reason=crashed error="it has come back 20 times: its work may end the process"`, "ack", "release 1"},
		},
		"one that has come back from a webhook": {
			returns: 20, webhook: true,
			want: []string{"claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"one that has come back often": {
			returns: 19,
			want:    []string{"claim 1", "work 1: attempt 1, token 1", "complete 1", "count new_order_ok", processed, "ack"},
		},
		"one that has come back often and is done": {
			returns: 20, call: "claim", err: claim.ErrDone,
			want: []string{"claim 1: done", "count new_order_skipped", skipped, "ack"},
		},
		"not an event": {
			body: `{"id":"1"}`,
			want: malformed("", `"type" is missing`),
		},
		"not an event, without etcd": {
			body: `[]`, withoutEtcd: true,
			want: malformed("", `body is not a JSON event: not an object`),
		},
		"another type with an empty id": {
			body: `{"type":"refund","id":""}`,
			want: malformed("", `"id" is empty`),
		},
		"without an id": {
			body: `{"type":"new_order"}`,
			want: malformed("new_order", `"id" is missing: nothing could tell this event from another`),
		},
		// If the claims close, the outcome is not known: the event is redelivered.
		"closed before the claim":  {call: "claim", err: claim.ErrClosed, want: []string{"claim 1: closed"}},
		"closed before the check":  {work: final, call: "check", err: claim.ErrClosed, want: []string{"claim 1", "work 1: attempt 1, token 1", "check 1: closed", "release 1"}},
		"closed before the record": {call: "complete", err: claim.ErrClosed, want: []string{"claim 1", "work 1: attempt 1, token 1", "complete 1: closed"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.work == nil {
					tt.work = done
				}
				if tt.body == "" {
					tt.body = `{"type":"new_order","id":"1"}`
				}
				p := newProcess(t, func(ctx context.Context, job consume.Job) error {
					if string(job.Body) != tt.body {
						t.Errorf("the handler got the body %q, want %q", job.Body, tt.body)
					}
					return tt.work(ctx, job)
				})
				if tt.withoutEtcd {
					p.withoutEtcd()
				}
				p.InProcess = !tt.webhook
				p.claims.answers[tt.call] = []error{tt.err}
				p.run(&delivery{journal: p.journal, body: tt.body, returns: tt.returns})
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
