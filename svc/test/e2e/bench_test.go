package e2e

import (
	"context"
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	benchRounds   = flag.Int("rounds", 5, "rounds of each benchmark; medians are reported")
	benchEvents   = flag.Int("events", 100_000, "events a measurement")
	benchRecorded = flag.Int("recorded", 10_000_000, "ids recorded before BenchmarkRecorded begins")
)

// The benchmarks measure throughput by draining a queue of waiting events in several
// ways, one after the other in each round. They report the medians of the events per
// second and of the ratios within a round. Everything runs on one machine whose speed
// changes over time, so only the ratios are meaningful.

// BenchmarkNewIDs compares new ids with a consumer that only acknowledges.
func BenchmarkNewIDs(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	for range *benchRounds {
		m.clear()
		m.topology("orders")
		bare := m.add("bare-consumer", m.bare(n))
		for _, level := range []string{"warn", "info"} {
			name := "new-" + level
			rate := m.add(name, m.drain(drain{bodies: m.fresh(n), vars: []string{"LOG_LEVEL=" + level}}))
			m.addCosts(name)
			m.add(name+"/bare", rate/bare)
		}
		m.add("MB-resident-service", m.resident/1e6)
	}
	m.report("/s")
}

// BenchmarkDuplicates compares duplicates, and a service that checks nothing,
// with a consumer that only acknowledges.
func BenchmarkDuplicates(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	recorded := m.fresh(n)
	m.topology("orders")
	m.drain(drain{bodies: recorded})
	for range *benchRounds {
		bare := m.add("bare-consumer", m.bare(n))
		m.add("state-off/bare", m.add("state-off", m.drain(drain{bodies: m.fresh(n), vars: []string{"ENABLE_ETCD=false"}}))/bare)
		m.add("duplicates/bare", m.add("duplicates", m.drain(drain{bodies: recorded, skipped: true}))/bare)
		m.addCosts("duplicates")
	}
	m.report("/s")
}

// BenchmarkTwoReplicas compares two replicas with one, all on this machine.
func BenchmarkTwoReplicas(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	for range *benchRounds {
		m.clear()
		m.topology("orders")
		for _, level := range []string{"warn", "info"} {
			vars := []string{"LOG_LEVEL=" + level}
			one := m.add("one-"+level, m.drain(drain{bodies: m.fresh(n), vars: vars}))
			two := m.add("two-"+level, m.drain(drain{bodies: m.fresh(n), vars: vars, replicas: 2}))
			m.addCosts("two-" + level)
			m.add("two/one-"+level, two/one)
		}
	}
	m.report("/s")
}

// BenchmarkLoneEvent measures the time of one event, from its publishing to its record,
// and compares it with its parts: a bare delivery and two successive writes.
func BenchmarkLoneEvent(b *testing.B) {
	m := newMeasurement(b)
	s := m.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=error")
	m.publishBodies(orders("warm", 20)...)
	m.waitCounts(map[string]int64{"orders_new_order_ok": 20})
	recorded := m.watchRecords()
	publisher, stop := m.dial()
	defer stop()
	// The bare delivery goes through an exchange and a durable queue like those of the service.
	consumer, stopConsumer := m.dial()
	defer stopConsumer()
	m.must(consumer.ExchangeDeclare("bare", "topic", true, true, false, false, nil))
	_, err := consumer.QueueDeclare("bare-queue", true, true, false, false, nil)
	m.must(err)
	m.must(consumer.QueueBind("bare-queue", "#", "bare", false, nil))
	deliveries, err := consumer.Consume("bare-queue", "", false, false, false, false, nil)
	m.must(err)
	for i := range 200 * *benchRounds {
		began := time.Now()
		m.must(publisher.Publish("events", "foo", false, false, plumber(order(fmt.Sprint("lone", i)))))
		recorded(fmt.Sprint("lone", i))
		event := time.Since(began)
		began = time.Now()
		m.must(publisher.Publish("bare", "foo", false, false, plumber(order("lone"))))
		d := <-deliveries
		bare := time.Since(began)
		m.must(d.Ack(false))
		began = time.Now()
		for range 2 {
			_, err := m.env.etcd.Put(context.Background(), "/probe", "x")
			m.must(err)
		}
		writes := time.Since(began)
		m.add("ms-event", event.Seconds()*1e3)
		m.add("ms-two-writes", writes.Seconds()*1e3)
		m.add("ms-bare-delivery", bare.Seconds()*1e3)
	}
	m.values["event/(writes+delivery)"] = []float64{median(m.values["ms-event"]) / (median(m.values["ms-two-writes"]) + median(m.values["ms-bare-delivery"]))}
	s.kill()
	m.report("")
}
