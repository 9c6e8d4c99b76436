package main

import (
	"context"
	"time"
)

// shutdown divides SHUTDOWN_TIMEOUT among the steps of a stop. The first takes no more
// events and lets running handlers finish.
//
//	SHUTDOWN_TIMEOUT    1s      8s     15s     30s
//	cancelHandlers      0.5s    4s     11s     26s     after the signal
//	leaveEtcd           0.75s   6s     13s     28s     after the signal
//	revoke              0.125s  1s     1s      1s
//	disconnect          0.083s  0.67s  0.67s   0.67s
type shutdown struct {
	cancelHandlers time.Duration // then handlers that still run are cancelled, and the others' ids recorded
	leaveEtcd      time.Duration // then nothing waits for etcd any more, and all is closed
	revoke         time.Duration // at most: the revocation of the session, while the broker's connections are closed
	disconnect     time.Duration // at most: the closing of each of these two, one after the other
}

// newShutdown keeps 2 s, or a quarter of a short timeout, for each of the last two steps.
func newShutdown(timeout time.Duration) shutdown {
	step := min(timeout/4, 2*time.Second)
	return shutdown{cancelHandlers: timeout - 2*step, leaveEtcd: timeout - step, revoke: step / 2, disconnect: step / 3}
}

// endAfter returns a context that ends d after ctx does. before is called then, if it is not nil.
func endAfter(ctx context.Context, d time.Duration, before func()) context.Context {
	later, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		time.AfterFunc(d, func() {
			if before != nil {
				before()
			}
			end()
		})
	})
	return later
}
