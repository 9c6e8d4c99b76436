package consume_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
)

func TestSemaphore(t *testing.T) {
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

// once returns a handler that fails with err the first time and then succeeds.
func once(err error) consume.Handler {
	var first sync.Once
	return func(context.Context, consume.Job) (result error) {
		first.Do(func() { result = err })
		return result
	}
}
