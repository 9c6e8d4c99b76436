package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// healthAt returns the URL at which the service reports its health.
func (s *service) healthAt() string {
	s.t.Helper()
	line := s.waitLog(`msg="health served"`)
	_, at, _ := strings.Cut(strings.TrimSpace(line), " at=")
	return "http://" + at
}

// get fetches a URL, decodes the JSON of the answer into body, and returns the status.
func get(t testing.TB, url string, body any) int {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	defer resp.Body.Close()
	if body != nil {
		must(t, json.NewDecoder(resp.Body).Decode(body))
	}
	return resp.StatusCode
}

// waitReady waits until exactly these parts are not ready.
func (s *service) waitReady(notReady ...string) {
	s.t.Helper()
	at := s.healthAt()
	eventually(s.t, fmt.Sprintf("not ready: %v", notReady), func() error {
		var answer struct {
			Ready bool
			Parts map[string]struct {
				Ready bool
				Since time.Time
				Error string
			}
		}
		status, ready := get(s.t, at+"/readyz", &answer), len(notReady) == 0
		ok := (status == http.StatusOK) == ready && answer.Ready == ready
		for _, name := range notReady {
			p, found := answer.Parts[name]
			ok = ok && found && !p.Ready && p.Error != "" && time.Since(p.Since) < maxWait
		}
		for name, p := range answer.Parts {
			ok = ok && (p.Ready || slices.Contains(notReady, name))
		}
		if !ok {
			return fmt.Errorf("%d %+v", status, answer)
		}
		return nil
	})
	if status := get(s.t, at+"/healthz", nil); status != http.StatusOK {
		s.t.Errorf("/healthz: %d", status)
	}
}

// /readyz is right at the start, during the warm-up, in outages of either server even
// without events, and during a stop.
func TestHealth(t *testing.T) {
	b := newProxiedEnv(t)
	b.must(fillRecords(deadline(t), b.etcd, 12000, 1)) // a few pages of records
	hang, began := newHang(t)
	b.toRabbit.cut()
	b.toEtcd.delay(150)
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+hang.URL, "HEALTH_ADDR=127.0.0.1:0", "SHUTDOWN_TIMEOUT="+shutdown.String())
	s.waitReady("broker", "consumer", "cache") // during the warm-up
	b.toEtcd.restore()
	s.waitReady("broker", "consumer")
	b.toRabbit.reconnect()
	s.waitReady()
	b.toEtcd.cut()
	s.waitReady("etcd")
	b.toEtcd.reconnect()
	s.waitReady()
	b.etcdServer.Pause()
	s.waitReady("etcd")
	b.etcdServer.Resume()
	s.waitReady()
	b.toRabbit.cut()
	s.waitReady("broker", "consumer")
	b.toRabbit.reconnect()
	s.waitReady()

	b.publishBodies(orders("h", 1)...)
	<-began
	s.signal(syscall.SIGTERM)
	s.waitReady("consumer")
	s.wantExit(0)
}

// /stats counts correctly even when statsd is not running, and has the number of events that
// are being processed. A statsd that starts later gets the times of work and claims, and within
// 10 s every counter.
func TestStats(t *testing.T) {
	b := newProxiedEnv(t)
	addr := b.statsd.Addr()
	b.statsd.Close()
	began, release := make(chan struct{}, 20), make(chan struct{})
	receiver := newReceiver(t, func(post) int {
		began <- struct{}{}
		<-release
		return http.StatusOK
	})
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "HEALTH_ADDR=127.0.0.1:0")
	s.waitReady()
	b.publishBodies(append(orders("s", 20), "poison", `{"type":"other","id":"1"}`)...)
	want := map[string]float64{"orders_new_order_ok": 0, "orders_new_order_skipped": 0, "orders_new_order_failed": 0,
		"orders_malformed": 1, "orders_ignored": 1, "orders_in_flight": 20, statRemembered: 0}
	stats := func() {
		t.Helper()
		eventually(t, "the counters", func() error {
			got := s.stats()
			delete(got, statReach) // see TestFlood
			if !maps.Equal(got, want) {
				return fmt.Errorf("%v, want %v", got, want)
			}
			return nil
		})
	}
	stats()
	for range 20 {
		<-began
	}
	var err error
	b.statsd, err = stack.StartStatsdAt(addr)
	b.must(err)
	defer b.statsd.Close()
	later, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if b.statsd.Wait(later, func(counts map[string]int64) bool { return len(counts) == 5 }) != nil {
		t.Errorf("statsd has only %v", b.statsd.Counts())
	}
	<-time.After(100 * time.Millisecond) // the work takes at least this long
	close(release)
	b.publishBodies(orders("s", 20)...)
	want["orders_new_order_ok"], want["orders_new_order_skipped"], want["orders_in_flight"], want[statRemembered] = 20, 20, 0, 20
	stats()
	for name, least := range map[string]float64{"orders_handle": 100, "orders_claim": 0} {
		eventually(t, name, func() error {
			if ms, seen := b.statsd.Last(name); !seen || ms < least || ms > 60_000 {
				return fmt.Errorf("%v is %v", seen, ms)
			}
			return nil
		})
	}
	if v, seen := b.statsd.Last("orders_in_flight"); seen {
		t.Errorf("statsd gets a gauge, which replicas would overwrite: %v", v)
	}

	taken := b.start("notify", "HEALTH_ADDR="+strings.TrimPrefix(s.healthAt(), "http://"))
	taken.wantExit(1)
	taken.waitLog("level=ERROR", "HEALTH_ADDR", "address already in use")
	s.stop()
	s.wantLines(0, "level=WARN")
	s.wantLines(0, "level=ERROR")
}
