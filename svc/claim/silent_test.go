package claim_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A delivery that waits for another process is granted its id although the watch shows no
// changes any more, without an error, and this process has nothing to write.
func TestWaitingBehindASilentWatch(t *testing.T) {
	etcd, role := sharedEtcd(t), newRole()
	owner := startOn(t, etcd, claim.Options{Role: role, Window: time.Hour})
	client := newClient(t, etcd)
	watcher := &silentWatcher{Watcher: client.Watcher}
	client.Watcher = watcher
	waiting := start(t, client, client, claim.Options{Role: role, Window: time.Hour})
	c := owner.mustClaim("1")
	granted := make(chan struct{})
	go func() {
		defer close(granted)
		waiting.Release(waiting.mustClaim("1"))
	}()
	eventually(t, func() error {
		if n := len(waiting.keys("claim/")); n != 2 {
			return fmt.Errorf("%d claims are written", n)
		}
		return nil
	})
	watcher.silent.Store(true)
	owner.Release(c)
	<-granted
}

// silentWatcher stands for a watch on a member whose disk hangs. A new watch shows all
// changes.
type silentWatcher struct {
	clientv3.Watcher
	silent atomic.Bool
}

func (w *silentWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w.silent.Store(false)
	shown := make(chan clientv3.WatchResponse)
	go func() {
		defer close(shown)
		for resp := range w.Watcher.Watch(ctx, key, opts...) {
			if w.silent.Load() {
				continue
			}
			select {
			case shown <- resp:
			case <-ctx.Done():
			}
		}
	}()
	return shown
}
