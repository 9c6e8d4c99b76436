package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// bare acknowledges each message and does nothing else, with the default PREFETCH of the service.
func (m *measurement) bare(n int) float64 {
	m.publishBodies(m.fresh(n)...)
	ch, stop := m.dial()
	defer stop()
	m.must(ch.Qos(1000, 0, false))
	deliveries, err := ch.Consume("orders-queue", "", false, false, false, false, nil)
	m.must(err)
	first := <-deliveries
	began := time.Now()
	first.Ack(false)
	for range n - 1 {
		d := <-deliveries
		d.Ack(false)
	}
	return float64(n-1) / time.Since(began).Seconds()
}

// drain describes how the real program processes a queue of waiting events.
type drain struct {
	bodies   []string
	skipped  bool // the events are duplicates
	replicas int  // 0: 1
	vars     []string
}

// drain starts the replicas, pauses them while it publishes the events, and then resumes
// them. It returns the events per second, measured from the first counted events to the
// last.
func (m *measurement) drain(d drain) float64 {
	m.b.Helper()
	counter, n := "orders_new_order_ok", len(d.bodies)
	if d.skipped {
		counter = "orders_new_order_skipped"
	}
	var replicas []*service
	var health []string
	for range max(d.replicas, 1) {
		port, err := stack.ReservePort()
		m.must(err)
		defer port.Close()
		log, err := os.Create(filepath.Join(m.b.TempDir(), "log"))
		m.must(err)
		defer log.Close()
		began := time.Now()
		s := m.startLogging("orders", log, append([]string{"ENABLE_ETCD=true", "CLAIM_TTL=60s", "HEALTH_ADDR=" + port.Addr()}, d.vars...)...)
		poll(m.b, time.Millisecond, "a replica that is ready", func() error {
			resp, err := http.Get("http://" + port.Addr() + "/readyz")
			if err == nil && resp.StatusCode != http.StatusOK {
				err = errNotYet
			}
			if resp != nil {
				resp.Body.Close()
			}
			return err
		})
		m.toConsuming = time.Since(began)
		replicas, health = append(replicas, s), append(health, "http://"+port.Addr())
	}
	for _, s := range replicas {
		s.signal(syscall.SIGSTOP)
	}
	m.publishBodies(d.bodies...)
	used := func() (service time.Duration) {
		for _, s := range replicas {
			service += s.cpu()
		}
		return service
	}
	spent := func(s *stack.Server) time.Duration {
		d, err := s.CPU()
		m.must(err)
		return d
	}
	service, etcd, broker := used(), spent(m.server.Server), spent(shared.rabbit.Server)
	for _, s := range replicas {
		s.signal(syscall.SIGCONT)
	}
	var first, last time.Time
	counted, before := 0, 0 // before is the count at the time first
	poll(m.b, 20*time.Millisecond, "all events", func() error {
		counted = 0
		for _, at := range health {
			var stats map[string]float64
			get(m.b, at+"/stats", &stats)
			counted += int(stats[counter])
		}
		last = time.Now()
		if before == 0 {
			first, before = last, counted
		}
		if counted < n {
			return errNotYet
		}
		return nil
	})
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	m.cpu = costs{each(used() - service), each(spent(m.server.Server) - etcd), each(spent(shared.rabbit.Server) - broker)}
	for _, s := range replicas {
		var kB int
		fmt.Sscan(strings.SplitAfter(readFile(m.b, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid)), "VmHWM:")[1], &kB)
		m.resident = float64(kB) * 1024
		s.stop()
	}
	return float64(counted-before) / last.Sub(first).Seconds()
}
