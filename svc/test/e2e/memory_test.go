package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/streadway/amqp"
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

// With more ids than CACHE_SIZE, all replicas forget the same oldest ids. A warning and the stats
// report that. (More in package claim.)
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
	b.publishBodies(orders("f", 100)...) // the oldest
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids + 100})
	for _, s := range replicas {
		s.stop()
	}
}

// DEDUP_WINDOW of the replica that records an id decides how long all replicas remember
// it. (More in package claim.)
func TestWindows(t *testing.T) {
	b := newProxiedEnv(t)
	for i, window := range []string{"0", "1s"} {
		s := b.start("orders", "ENABLE_ETCD=true", "DEDUP_WINDOW="+window)
		s.waitLog("msg=consuming")
		b.publishBodies(orders(window+"-", 50)...)
		b.waitCounts(map[string]int64{"orders_new_order_ok": 50 * int64(i+1)})
		s.stop()
	}
	recorded := time.Now()
	s := b.start("orders", "ENABLE_ETCD=true", "HEALTH_ADDR=127.0.0.1:0")
	for b.waitRemembered(s) > 50 {
		if time.Since(recorded) > 6*time.Second {
			t.Fatal("a window of 1s has not ended")
		}
	}
	b.publishBodies(append(orders("0-", 50), orders("1s-", 50)...)...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": 150, "orders_new_order_skipped": 50})
	s.stop()
}
