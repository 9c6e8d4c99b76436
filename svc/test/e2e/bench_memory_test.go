package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// BenchmarkRecorded compares an etcd with many recorded ids with an empty one: the
// throughput of new ids, the time from the start of a replica until it consumes, and
// the memory of the replica and of etcd.
func BenchmarkRecorded(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	full := startEtcd(b)
	client, err := full.Client()
	m.must(err)
	defer client.Close()
	began := time.Now()
	m.must(fillRecords(context.Background(), client, *benchRecorded, 500))
	b.Logf("recorded %d ids in %v", *benchRecorded, time.Since(began))
	b.ReportMetric(metric(b, full, "process_resident_memory_bytes")/1e6, "MB-resident-etcd")
	for round := range *benchRounds {
		empty := startEtcd(b)
		names := map[*stack.Etcd]string{empty: "empty", full: "recorded"}
		turns := []*stack.Etcd{empty, full}
		if round%2 == 1 { // so that changes in the machine's speed affect both equally
			slices.Reverse(turns)
		}
		rates, heaps := make(map[*stack.Etcd]float64), make(map[*stack.Etcd]float64)
		for _, etcd := range turns {
			m.server = etcd
			at := "ETCD_ENDPOINTS=" + etcd.Endpoint()
			rates[etcd] = m.add(names[etcd], m.drain(drain{bodies: m.fresh(n), vars: []string{at}}))
			m.addCosts(names[etcd])
			m.add("MB-resident-service-"+names[etcd], m.resident/1e6)
			m.add("ms-to-consuming-"+names[etcd], m.toConsuming.Seconds()*1e3)
			heaps[etcd] = m.heap(at)
		}
		m.add("recorded/empty", rates[full]/rates[empty])
		m.add("B-heap/id", (heaps[full]-heaps[empty])/float64(*benchRecorded+round*n)) // with the ids of earlier rounds
		m.must(empty.Close())
	}
	b.ReportMetric(metric(b, full, "process_resident_memory_bytes")/1e6, "MB-resident-etcd-in-the-end")
	m.report("/s")
}

// heap returns the live heap, in bytes, of a replica that has read all records.
func (m *measurement) heap(vars ...string) (bytes float64) {
	m.b.Helper()
	// The replica collects garbage whenever its heap has grown by 5 %, and logs the
	// sizes.
	s := m.start("orders", append(vars, "ENABLE_ETCD=true", "GOGC=5", "GODEBUG=gctrace=1")...)
	s.waitLog("msg=consuming")
	s.stop()
	for _, sizes := range regexp.MustCompile(`\d+->\d+->(\d+) MB`).FindAllStringSubmatch(s.log.String(), -1) {
		fmt.Sscan(sizes[1], &bytes)
	}
	return bytes * (1 << 20)
}

// BenchmarkRecordSize reports how much of etcd's quota a recorded id of ten bytes takes
// after a compaction and a defragmentation, for ids that were recorded from a full queue
// and for ids that were recorded one at a time.
func BenchmarkRecordSize(b *testing.B) {
	m := newMeasurement(b)
	n := *benchEvents
	ids := harness.IDs("", 1_000_000_000, n+n/5) // ten bytes each
	bodies := make([]string, len(ids))
	for i, id := range ids {
		bodies[i] = order(id)
	}
	size := func() float64 { return float64(m.compact(b.Context(), m.server.Endpoint()).DbSize) }
	empty := size()
	m.drain(drain{bodies: bodies[:n]})
	bulk := size()
	b.ReportMetric((bulk-empty)/float64(n), "B/id-in-bulk")

	s := m.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=error")
	recorded := m.watchRecords()
	publisher, stop := m.dial()
	defer stop()
	for i := n; i < len(ids); i++ {
		m.must(publisher.Publish("events", "foo", false, false, plumber(bodies[i])))
		recorded(ids[i])
	}
	s.stop()
	b.ReportMetric((size()-bulk)/float64(len(ids)-n), "B/id-one-at-a-time")
	b.ReportMetric(0, "ns/op")
}
