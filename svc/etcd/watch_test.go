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

// While a watch does not open another is tried, up to four. The one that opens is kept.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for frozen := range maxTries {
			c, _ := newLogged()
			members := watches{frozen: frozen, opened: make(chan context.Context, maxTries)}
			c.Raw = &clientv3.Client{Watcher: members}
			began := time.Now()
			_, err := c.Watch(t.Context(), "key", 1)
			if after, want := time.Since(began), time.Duration(frozen)*resendAfter/2; err != nil || after != want {
				t.Errorf("with %d frozen members a watch opens after %v, want %v (%v)", frozen, after, want, err)
			}
			for range frozen {
				if (<-members.opened).Err() == nil {
					t.Error("a watch of a frozen member is kept")
				}
			}
			if (<-members.opened).Err() != nil {
				t.Error("the watch that opened is cancelled")
			}
			c.tries.Wait()
		}

		c, _ := newLogged()
		members := watches{frozen: maxTries, opened: make(chan context.Context, maxTries+1)}
		c.Raw = &clientv3.Client{Watcher: members}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c.Watch(ctx, "key", 1)
		if n := len(members.opened); n != maxTries {
			t.Errorf("%d watches are tried, want %d", n, maxTries)
		}
		c.tries.Wait()
	})
}
