package claim_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkWarmUp reports how many recorded ids are read into the cache a
// second, at one million.
func BenchmarkWarmUp(b *testing.B) {
	const ids = 1_000_000
	client, role := newClient(b), newRole()
	record(b, client, role, ids)
	store := newStore(b, client, claim.Options{Role: role, Window: time.Hour})
	for b.Loop() {
		cache := claim.NewCache(ids, time.Hour)
		if err := store.Warm(context.Background(), cache); err != nil {
			b.Fatal(err)
		}
		if cache.Len() != ids {
			b.Fatalf("%d of %d ids are in the cache", cache.Len(), ids)
		}
	}
	b.ReportMetric(float64(ids)*float64(b.N)/b.Elapsed().Seconds(), "ids/s")
}

// record writes done ids as the service would, only faster.
func record(b *testing.B, client *clientv3.Client, role string, ids int) {
	b.Helper()
	ctx := context.Background()
	var wg sync.WaitGroup
	const writers, batch = 4, 120
	for w := range writers {
		wg.Go(func() {
			var lease clientv3.LeaseID
			for n, i := 0, w*batch; i < ids; n, i = n+1, i+writers*batch {
				if n%40 == 0 { // some 5,000 ids a lease
					grant, err := client.Grant(ctx, 7200)
					if err != nil {
						b.Error(err)
						return
					}
					lease = grant.ID
				}
				var put []clientv3.Op
				for j := i; j < min(i+batch, ids); j++ {
					put = append(put, clientv3.OpPut(claim.Key(role, fmt.Sprintf("order-%08d", j)), "done 1795417557", clientv3.WithLease(lease)))
				}
				if _, err := client.Txn(ctx).Then(put...).Commit(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLeaseExpiry reports how long a put waits at the most while a full
// retention lease is deleted, for several numbers of keys under it.
func BenchmarkLeaseExpiry(b *testing.B) {
	for _, keys := range []int{1000, 5000, 20_000, 100_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			client, role := newClient(b), newRole()
			ctx := context.Background()
			put := func() time.Duration {
				began := time.Now()
				if _, err := client.Put(ctx, "/probe", "x"); err != nil {
					b.Fatal(err)
				}
				return time.Since(began)
			}
			var before, during []time.Duration
			for b.Loop() {
				grant, err := client.Grant(ctx, 7200)
				if err != nil {
					b.Fatal(err)
				}
				for i := 0; i < keys; i += 120 {
					var ops []clientv3.Op
					for j := i; j < min(i+120, keys); j++ {
						ops = append(ops, clientv3.OpPut(claim.Key(role, fmt.Sprintf("order-%08d", j)), "done 1795417557", clientv3.WithLease(grant.ID)))
					}
					if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
						b.Fatal(err)
					}
				}
				for range 500 {
					before = append(before, put())
				}
				revoked := make(chan struct{})
				go func() {
					defer close(revoked)
					client.Revoke(ctx, grant.ID)
				}()
				for ended := false; !ended; {
					during = append(during, put())
					select {
					case <-revoked:
						ended = true
					default:
					}
				}
			}
			b.ReportMetric(float64(slices.Max(during))/1e6, "ms-longest-put")
			b.ReportMetric(float64(slices.Max(before))/1e6, "ms-longest-put-before")
		})
	}
}
