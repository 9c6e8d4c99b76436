package claim

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

const (
	warmParallel = 4    // shards read at once
	warmPage     = 5000 // records a read
	warmProgress = 5 * time.Second
)

// Warm adds the ids that etcd has recorded as done to the cache until it is
// full. It waits for etcd; it fails only when ctx ends.
func (s *Etcd) Warm(ctx context.Context, cache *Cache) error {
	var read atomic.Int64
	defer s.tellProgress(&read)()
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(warmParallel)
	for shard := range shards {
		work.Go(func() error { return s.warmShard(ctx, cache, uint8(shard), &read) })
	}
	return work.Wait()
}

// tellProgress logs how far a long warm-up is, until the returned function is
// called.
func (s *Etcd) tellProgress(read *atomic.Int64) (stop func()) {
	ended, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		tick := time.NewTicker(warmProgress)
		defer tick.Stop()
		for logged := int64(0); ; {
			select {
			case <-tick.C:
				if n := read.Load(); n > logged { // otherwise etcd is away, which is said elsewhere
					s.log.Info("warming the cache", "ids", n)
					logged = n
				}
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-told }
}

func (s *Etcd) warmShard(ctx context.Context, cache *Cache, shard uint8, read *atomic.Int64) error {
	prefix := prefix(s.role, shard)
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; from != "" && !cache.Full(); {
		resp, err := insist(ctx, s.away, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return s.kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(warmPage))
		})
		if err != nil {
			return err
		}
		from = ""
		for _, kv := range resp.Kvs {
			if strings.HasPrefix(string(kv.Value), "done ") && !cache.Full() {
				cache.Add(string(kv.Key[len(prefix):]), s.retention.left(ctx, clientv3.LeaseID(kv.Lease)))
			}
		}
		if resp.More {
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
		read.Add(int64(len(resp.Kvs)))
	}
	return nil
}
