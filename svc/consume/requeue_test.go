package consume_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
)

const refund = `{"type":"refund","id":"1"}`

// An event of a type that only another process handles is requeued after a second, as soon as
// the broker takes the copy. It is ignored when no other process handles it any more.
func TestHandledElsewhere(t *testing.T) {
	ignored := []string{"count ignored", "msg=ignored type=refund id=1", "ack"}
	tests := map[string]struct {
		slots   int
		refused int // copies
		gone    bool
		want    []string
	}{
		"requeued":                      {slots: 2, want: []string{"requeue", "ack"}},
		"refused twice":                 {slots: 2, refused: 2, want: []string{"requeue: refused", "requeue: refused", "requeue", "ack"}},
		"refused, and not handled then": {slots: 2, refused: 1, gone: true, want: append([]string{"requeue: refused"}, ignored...)},
		"in order":                      {slots: 1},
		"in order, and not handled then": {
			slots: 1, gone: true, want: ignored,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(t, done)
				p.Semaphore = make(consume.Semaphore, tt.slots)
				p.claims.others.Store(true)
				ctx, stop := context.WithCancel(t.Context())
				returned := p.handle(ctx, &delivery{journal: p.journal, body: refund, refused: tt.refused})
				pass(400 * time.Millisecond)
				p.expect(t)
				if tt.gone {
					p.claims.others.Store(false)
				}
				pass(20 * time.Second)
				p.expect(t, tt.want...)
				stop()
				if !returned() {
					t.Error("the event still waits")
				}
			})
		})
	}
}
