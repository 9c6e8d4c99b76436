package etcd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watches stands for the members of an etcd, of which some are frozen.
type watches struct {
	clientv3.Watcher
	frozen int
	opened chan context.Context
}

func (w watches) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	w.opened <- ctx
	if len(w.opened) <= w.frozen {
		<-ctx.Done()
	}
	return make(clientv3.WatchChan)
}

// While a watch does not open another is tried, up to four. Only the one that opens is kept.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for frozen := range maxTries + 1 {
			c, _ := newLogged()
			members := watches{frozen: frozen, opened: make(chan context.Context, maxTries+1)}
			c.Raw = &clientv3.Client{Watcher: members}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			began := time.Now()
			c.Watch(ctx, "key", 1)
			if after := time.Since(began); frozen < maxTries && after != time.Duration(frozen)*resendAfter/2 {
				t.Errorf("with %d frozen members a watch opens after %v", frozen, after)
			}
			close(members.opened)
			tries := 0
			for try := range members.opened {
				if tries++; (try.Err() == nil) != (tries == frozen+1) {
					t.Errorf("with %d frozen members, try %d is kept: %t", frozen, tries, try.Err() == nil)
				}
			}
			if tries != min(frozen+1, maxTries) {
				t.Errorf("with %d frozen members %d watches are tried", frozen, tries)
			}
			cancel()
			c.tries.Wait()
		}
	})
}
