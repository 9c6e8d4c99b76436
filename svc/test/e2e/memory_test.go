package e2e

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// publishLone publishes n events one by one, at about 400 a second.
func (e *env) publishLone(prefix string, n int) {
	e.t.Helper()
	e.channel(func(ch *amqp.Channel) error {
		tick := time.NewTicker(2500 * time.Microsecond)
		defer tick.Stop()
		for _, body := range orders(prefix, n) {
			<-tick.C
			if err := ch.Publish("events", "foo", false, false, plumber(body)); err != nil {
				return err
			}
		}
		return nil
	})
}

// stats returns the counters of a replica.
func (s *service) stats() map[string]float64 {
	s.t.Helper()
	var stats map[string]float64
	get(s.t, s.healthAt()+"/stats", &stats)
	return stats
}

const (
	statRemembered = "orders_ids_remembered"
	statReach      = "orders_memory_reach_seconds"
)

// waitRemembered waits until all replicas remember as many ids as etcd has, and returns
// their number.
func (e *env) waitRemembered(replicas ...*service) (n int) {
	e.t.Helper()
	eventually(e.t, "all remember the same", func() error {
		n = len(e.keys("orders").done())
		for _, s := range replicas {
			if got := s.stats()[statRemembered]; got != float64(n) {
				return fmt.Errorf("%s remembers %v ids, etcd has %d", s.name, got, n)
			}
		}
		return nil
	})
	return n
}

// With more ids than CACHE_SIZE, all replicas forget the same oldest ids and still skip
// the youngest. A warning and the stats report that. (More in package claim.)
func TestFlood(t *testing.T) {
	const size, ids = 4000, 12000
	b := newProxiedEnv(t)
	vars := []string{"ENABLE_ETCD=true", "HEALTH_ADDR=127.0.0.1:0", fmt.Sprint("CACHE_SIZE=", size), "PREFETCH=100"}
	replicas := []*service{b.start("orders", vars...), b.start("orders", vars...)}
	for _, s := range replicas {
		s.waitLog("msg=consuming")
	}
	began := time.Now()
	b.publishBodies(orders("f", ids)...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids})
	took := time.Since(began)
	if n := b.waitRemembered(replicas...); n > size || n < size/2 {
		t.Errorf("%d ids are remembered, CACHE_SIZE is %d", n, size)
	}
	warnings := 0
	for _, s := range replicas {
		if reach, ok := s.stats()[statReach]; !ok || reach < 0 || reach > took.Seconds()+1 {
			t.Errorf("%s says that its memory reaches back %v s (%v), the flood began %v ago", s.name, reach, ok, took)
		}
		warnings += s.log.count("level=WARN", "CACHE_SIZE", "DEDUP_WINDOW")
	}
	if warnings == 0 {
		t.Error("no replica warns")
	}
	newest := slices.MaxFunc(b.keys("orders").records, func(a, b batch) int { return int(a.ModRevision - b.ModRevision) })
	for _, id := range newest.ids {
		b.publishBodies(harness.NewOrder(id))
	}
	b.publishBodies(orders("f", 100)...) // the oldest
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids + 100, "orders_new_order_skipped": int64(len(newest.ids))})
	for _, s := range replicas {
		s.stop()
	}
}

// DEDUP_WINDOW of the replica that records an id decides how long all replicas remember
// it. (More in package claim.)
func TestWindows(t *testing.T) {
	b := newProxiedEnv(t)
	start := func(window string) *service {
		s := b.start("orders", "ENABLE_ETCD=true", "HEALTH_ADDR=127.0.0.1:0", "DEDUP_WINDOW="+window)
		s.waitLog("msg=consuming")
		return s
	}
	for i, window := range []string{"24h", "0", "1s"} {
		s := start(window)
		b.publishBodies(orders(window+"-", 50)...)
		b.waitCounts(map[string]int64{"orders_new_order_ok": 50 * int64(i+1)})
		s.stop()
	}
	s := start("1h")
	recorded := time.Now()
	eventually(t, "the window ends", func() error {
		if n := len(b.keys("orders").done()); n != 100 {
			return fmt.Errorf("%d ids are done", n)
		}
		return nil
	})
	if took := time.Since(recorded); took > 6*time.Second {
		t.Errorf("a window of 1s ended after %v", took)
	}
	values := make(map[string]bool)
	for _, window := range b.keys("orders").windows {
		values[string(window.Value)] = true
	}
	if got := slices.Sorted(maps.Keys(values)); fmt.Sprint(got) != "[0s 24h0m0s]" {
		t.Errorf("windows are of %v", got)
	}
	b.waitRemembered(s)
	b.publishBodies(slices.Concat(orders("24h-", 50), orders("0-", 50), orders("1s-", 50))...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": 200, "orders_new_order_skipped": 100})
	s.stop()
}
