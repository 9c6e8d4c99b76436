package consume

import (
	"context"
	"sync"
	"time"
)

// attemptContext is the context of one attempt. It ends at the deadline, when handlerCtx or held
// ends, and when the attempt has returned. It is made at its first use: most handlers of quick
// work never look at it, and pay for no timer and for no lock that all attempts share.
type attemptContext struct {
	handlerCtx, held context.Context
	deadline         time.Time

	once   sync.Once
	ctx    context.Context // nil: not used yet
	cancel context.CancelFunc
}

// made returns the context, which it makes at the first call.
func (a *attemptContext) made() context.Context {
	a.once.Do(func() {
		ctx, cancel := context.WithDeadline(a.handlerCtx, a.deadline)
		stop := context.AfterFunc(a.held, cancel)
		a.ctx, a.cancel = ctx, func() {
			stop()
			cancel()
		}
	})
	return a.ctx
}

// end ends the context.
func (a *attemptContext) end() {
	a.once.Do(func() { a.ctx, a.cancel = ended, func() {} })
	a.cancel()
}

// ended is the context of an attempt that has returned without a look at its own.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (a *attemptContext) Deadline() (time.Time, bool) { return a.deadline, true }
func (a *attemptContext) Done() <-chan struct{}       { return a.made().Done() }
func (a *attemptContext) Err() error                  { return a.made().Err() }
func (a *attemptContext) Value(key any) any           { return a.made().Value(key) }
