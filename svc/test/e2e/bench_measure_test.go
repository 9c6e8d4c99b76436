package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// costs holds the processor time per event, in µs.
type costs struct{ service, etcd, broker float64 }

// measurement is an env with an etcd of its own on the shared broker, and the measured
// values.
type measurement struct {
	*env
	b           *testing.B
	values      map[string][]float64
	run         int
	resident    float64       // maximum memory of the last service, in bytes
	toConsuming time.Duration // time from the start of the last service until it consumed
	cpu         costs         // of the last drain
	server      *stack.Etcd
}

func startEtcd(b *testing.B) *stack.Etcd {
	b.Helper()
	return startEtcds(b, 1, stack.EtcdOptions{QuotaBytes: 8 << 30})[0]
}

func newMeasurement(b *testing.B) *measurement {
	b.Helper()
	server := startEtcd(b)
	m := &measurement{env: newEnvOn(b, shared.rabbit.URL(), server), server: server, b: b, values: make(map[string][]float64)}
	m.topology("orders")
	return m
}

func (m *measurement) add(name string, v float64) float64 {
	m.values[name] = append(m.values[name], v)
	return v
}

func (m *measurement) addCosts(name string) {
	m.add("µs-cpu-"+name+"-service", m.cpu.service)
	m.add("µs-cpu-"+name+"-etcd", m.cpu.etcd)
	m.add("µs-cpu-"+name+"-broker", m.cpu.broker)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func (m *measurement) report(unit string) {
	for _, name := range slices.Sorted(maps.Keys(m.values)) {
		u, v := name, m.values[name]
		first, _, _ := strings.Cut(name, "-")
		if !strings.Contains(name, "/") && !slices.Contains([]string{"µs", "ms", "MB"}, first) {
			u += unit
		}
		m.b.ReportMetric(median(v), u)
		// Logf would show only ten lines.
		fmt.Printf("%-28s median %10.2f  of %.2f\n", name, median(v), v[:min(len(v), 9)])
	}
	m.b.ReportMetric(0, "ns/op")
}

// fresh returns n events with new ids.
func (m *measurement) fresh(n int) []string {
	m.run++
	return orders(fmt.Sprintf("run%d-", m.run), n)
}

// watchRecords returns a function that waits until an id is recorded. It must be called
// in the order in which the ids are recorded.
func (m *measurement) watchRecords() (wait func(id string)) {
	watch := m.env.etcd.Watch(context.Background(), "/service/orders/done/", clientv3.WithPrefix())
	return func(id string) {
		for resp := range watch {
			for _, e := range resp.Events {
				if strings.Contains(string(e.Kv.Value), `"`+id+`"`) {
					return
				}
			}
		}
		m.b.Fatal("the watch has ended")
	}
}
