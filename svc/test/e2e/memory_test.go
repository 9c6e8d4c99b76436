package e2e

import (
	"fmt"
	"maps"
	"slices"
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

// With more ids than CACHE_SIZE, all replicas forget the same oldest ids and still skip
// the younger ones. A warning and the stats report that.
func TestFlood(t *testing.T) {
	const size, ids, probe = 4000, 24000, 200
	b := newProxiedEnv(t)
	vars := []string{"ENABLE_ETCD=true", "HEALTH_ADDR=127.0.0.1:0", fmt.Sprint("CACHE_SIZE=", size), "PREFETCH=100"}
	replicas := []*service{b.start("orders", vars...), b.start("orders", vars...)}
	for _, s := range replicas {
		s.waitLog("msg=consuming")
	}
	began, most := time.Now(), 0.0
	for flood := range slices.Chunk(orders("f", ids), ids/12) {
		b.publishBodies(flood...)
		for _, s := range replicas {
			most = max(most, s.stats()[statRemembered])
		}
	}
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids})
	took := time.Since(began)
	if most > 1.5*size {
		t.Errorf("a replica remembered %v ids, CACHE_SIZE is %d", most, size)
	}
	n := b.waitRemembered(replicas...)
	if n > size || n < size/2 {
		t.Errorf("%d ids are remembered, CACHE_SIZE is %d", n, size)
	}
	for _, s := range replicas {
		if reach, ok := s.stats()[statReach]; !ok || reach < 0 || reach > took.Seconds()+1 {
			t.Errorf("%s says that its memory reaches back %v s (%v), the flood began %v ago", s.name, reach, ok, took)
		}
	}
	eventually(t, "a warning", func() error {
		for _, s := range replicas {
			if s.log.count("level=WARN", "CACHE_SIZE", "DEDUP_WINDOW") > 0 {
				return nil
			}
		}
		return errNotYet
	})
	t.Logf("%d ids in %v; up to %v remembered, %d in the end", ids, took.Round(time.Millisecond), most, n)

	// Young ids are skipped, and old ids, which are forgotten, are done again.
	keys := b.keys("orders")
	done := keys.done()
	newest := slices.MaxFunc(keys.records, func(a, b batch) int { return int(a.ModRevision - b.ModRevision) })
	event := func(id string) string { return fmt.Sprintf(`{"type":"new_order","id":%q}`, id) }
	var young, old []string
	for _, id := range newest.ids {
		young = append(young, event(id))
	}
	for i := 0; len(old) < probe; i++ {
		if id := fmt.Sprint("f", i); !done[id] {
			old = append(old, event(id))
		}
	}
	b.publishBodies(young...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids, "orders_new_order_skipped": int64(len(young))})
	b.publishBodies(old...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": ids + probe, "orders_new_order_skipped": int64(len(young))})
	for _, s := range replicas {
		s.stop()
	}
}

// DEDUP_WINDOW of the replica that records an id decides how long all replicas remember
// it.
func TestWindows(t *testing.T) {
	b := newProxiedEnv(t)
	var ok int64
	replica := func(window string) *service {
		t.Helper()
		s := b.start("orders", "ENABLE_ETCD=true", "HEALTH_ADDR=127.0.0.1:0", "DEDUP_WINDOW="+window)
		s.waitLog("msg=consuming")
		return s
	}
	publish := func(prefix string) {
		t.Helper()
		b.publishBodies(orders(prefix, 50)...)
		ok += 50
		b.waitCounts(map[string]int64{"orders_new_order_ok": ok})
	}
	for _, r := range []struct{ window, prefix string }{{"24h", "day"}, {"0", "ever"}} {
		s := replica(r.window)
		publish(r.prefix)
		s.stop()
	}
	values := make(map[string]bool)
	for _, window := range b.keys("orders").windows {
		values[string(window.Value)] = true
	}
	if got := slices.Sorted(maps.Keys(values)); fmt.Sprint(got) != "[0s 24h0m0s]" {
		t.Errorf("windows are of %v", got)
	}
	hour, second := replica("1h"), replica("1s")
	if n := b.waitRemembered(hour, second); n != 100 {
		t.Errorf("%d ids are remembered, want 100", n)
	}
	known := append(orders("day", 50), orders("ever", 50)...)
	b.publishBodies(known...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": ok, "orders_new_order_skipped": 100})
	hour.stop()
	publish("second")
	recorded := time.Now()
	hour = replica("1h")
	eventually(t, "the window ends", func() error {
		if n := len(b.keys("orders").done()); n != 100 {
			return fmt.Errorf("%d ids are done", n)
		}
		return nil
	})
	if took := time.Since(recorded); took > 6*time.Second {
		t.Errorf("a window of 1s ended after %v", took)
	}
	if n := b.waitRemembered(hour, second); n != 100 {
		t.Errorf("%d ids are remembered, want 100", n)
	}
	publish("second")
	b.publishBodies(known...)
	b.waitCounts(map[string]int64{"orders_new_order_ok": ok, "orders_new_order_skipped": 200})
	hour.stop()
	second.stop()
}
