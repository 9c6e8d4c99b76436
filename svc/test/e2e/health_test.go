package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
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
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body != nil {
		if err := json.NewDecoder(resp.Body).Decode(body); err != nil {
			t.Fatal(err)
		}
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
		status := get(s.t, at+"/readyz", &answer)
		wrong := fmt.Errorf("%d %+v", status, answer)
		if (status == http.StatusOK) != (len(notReady) == 0) || answer.Ready != (len(notReady) == 0) {
			return wrong
		}
		for _, name := range notReady {
			p := answer.Parts[name]
			if p.Ready || p.Error == "" || p.Since.IsZero() || time.Since(p.Since) > maxWait {
				return wrong
			}
			delete(answer.Parts, name)
		}
		for _, p := range answer.Parts {
			if !p.Ready {
				return wrong
			}
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
// are being processed. statsd gets the times of work and claims.
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
	want := map[string]int64{"orders_new_order_ok": 0, "orders_new_order_skipped": 0, "orders_new_order_failed": 0,
		"orders_malformed": 1, "orders_ignored": 1, "orders_in_flight": 20, statRemembered: 0}
	stats := func() {
		t.Helper()
		eventually(t, "the counters", func() error {
			var got map[string]int64
			get(t, s.healthAt()+"/stats", &got)
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
	b.listen(addr)
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

	// Without ENABLE_ETCD readiness does not depend on etcd.
	other := b.start("notify", "HEALTH_ADDR=127.0.0.1:0")
	other.waitReady()
	taken := b.start("notify", "HEALTH_ADDR="+strings.TrimPrefix(s.healthAt(), "http://"))
	taken.wantExit(1)
	taken.waitLog("level=ERROR", "HEALTH_ADDR", "address already in use")
	other.stop()
	s.stop()
}
