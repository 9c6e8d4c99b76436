package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
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
	order       []string
	run         int
	resident    float64       // maximum memory of the last service, in bytes
	toConsuming time.Duration // time from the start of the last service until it consumed
	cpu         costs         // of the last drain
	server      *stack.Etcd
}

func startEtcd(b *testing.B) *stack.Etcd {
	b.Helper()
	server, err := stack.StartEtcd(context.Background(), filepath.Join(b.TempDir(), "etcd"), stack.EtcdOptions{QuotaBytes: 8 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	return server
}

func newMeasurement(b *testing.B) *measurement {
	b.Helper()
	server := startEtcd(b)
	m := &measurement{env: newEnvOn(b, shared.rabbit.URL(), server), server: server, b: b, values: make(map[string][]float64)}
	m.topology("orders")
	return m
}

func (m *measurement) add(name string, v float64) float64 {
	if m.values[name] == nil {
		m.order = append(m.order, name)
	}
	m.values[name] = append(m.values[name], v)
	return v
}

func (m *measurement) addCosts(name string) {
	m.add("µs-cpu-"+name+"-service", m.cpu.service)
	m.add("µs-cpu-"+name+"-etcd", m.cpu.etcd)
	m.add("µs-cpu-"+name+"-broker", m.cpu.broker)
}

func (m *measurement) ratio(name string, a, b float64) { m.add(name, a/b) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func (m *measurement) report(unit string) {
	for name, v := range m.values {
		u := name
		first, _, _ := strings.Cut(name, "-")
		if !strings.Contains(name, "/") && !slices.Contains([]string{"µs", "ms", "MB"}, first) {
			u += unit
		}
		m.b.ReportMetric(median(v), u)
	}
	m.b.ReportMetric(0, "ns/op")
	for _, name := range m.order {
		// Logf would show only ten lines.
		fmt.Printf("%-28s median %10.2f  of %.2f\n", name, median(m.values[name]), m.values[name][:min(len(m.values[name]), 9)])
	}
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

// publisher returns a function that publishes one message to an exchange.
func (m *measurement) publisher(exchange string) (publish func(body string), stop func()) {
	conn, err := amqp.Dial(m.directAMQP)
	if err != nil {
		m.b.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		m.b.Fatal(err)
	}
	return func(body string) {
		if err := ch.Publish(exchange, "foo", false, false, plumber(body)); err != nil {
			m.b.Fatal(err)
		}
	}, func() { conn.Close() }
}

// deliverBare returns a function that measures one delivery, from publishing to
// receiving, through an exchange and a durable queue like those of the service.
func (m *measurement) deliverBare() (measure func() time.Duration, stop func()) {
	conn, err := amqp.Dial(m.directAMQP)
	if err != nil {
		m.b.Fatal(err)
	}
	ch, err := conn.Channel()
	must := func(err error) {
		if err != nil {
			m.b.Fatal(err)
		}
	}
	must(err)
	must(ch.ExchangeDeclare("bare", "topic", true, true, false, false, nil))
	_, err = ch.QueueDeclare("bare-queue", true, true, false, false, nil)
	must(err)
	must(ch.QueueBind("bare-queue", "#", "bare", false, nil))
	deliveries, err := ch.Consume("bare-queue", "", false, false, false, false, nil)
	must(err)
	publish, stopPublisher := m.publisher("bare")
	return func() time.Duration {
		began := time.Now()
		publish(`{"type":"new_order","id":"lone"}`)
		d := <-deliveries
		took := time.Since(began)
		d.Ack(false)
		return took
	}, func() { stopPublisher(); conn.Close() }
}
