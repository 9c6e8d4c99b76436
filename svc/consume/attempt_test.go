package consume_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
)

// A handler may derive contexts from its own, at any time, and keep it after its return. It
// then has ended, whether it was used before or not.
func TestContextOfAnAttempt(t *testing.T) {
	for name, use := range map[string]bool{"used": true, "not used": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ctx, derived context.Context
				p := newProcess(t, func(attempt context.Context, _ consume.Job) error {
					ctx = attempt
					if at, ok := ctx.Deadline(); !ok || time.Until(at) != 30*time.Second {
						t.Errorf("the deadline is %v", at)
					}
					if use {
						var cancel context.CancelFunc
						derived, cancel = context.WithCancel(context.WithValue(ctx, t, name))
						defer cancel()
						if ctx.Err() != nil || derived.Err() != nil {
							t.Error("ended at once:", ctx.Err(), derived.Err())
						}
					}
					return nil
				})
				p.run(p.order("1"))
				if !errors.Is(ctx.Err(), context.Canceled) || use && !errors.Is(derived.Err(), context.Canceled) {
					t.Error("the context goes on after the attempt:", ctx.Err(), derived)
				}
				<-ctx.Done()
			})
		})
	}
}
