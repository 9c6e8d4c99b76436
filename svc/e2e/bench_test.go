package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	benchRounds   = flag.Int("rounds", 5, "rounds of each benchmark; medians are reported")
	benchEvents   = flag.Int("events", 100_000, "events a measurement")
	benchRecorded = flag.Int("recorded", 1_000_000, "ids recorded before BenchmarkRecorded begins; README: 10000000")
)

// naiveParallel is how many events the naive way, one id a transaction, works on
// at once: one after the other; some; as many as the service runs handlers.
var naiveParallel = []int{1, 4, 32}

// BenchmarkThroughput drains a queue of waiting events in several ways, one
// after the other in each round, and reports the medians: events a second, and
// ratios of the same round. Everything runs on this machine, whose speed
// drifts: only the ratios mean anything.
func BenchmarkThroughput(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	for range *benchRounds {
		m.clear()
		m.topology("orders")
		bare := m.add("bare-consumer", m.bare(n))
		m.ratio("state-off/bare", m.add("state-off", m.drain(drain{bodies: m.fresh(n), vars: []string{"ENABLE_ETCD=false"}})), bare)
		m.ratio("unique-warn/bare", m.add("unique-warn", m.drain(drain{bodies: m.fresh(n), vars: []string{"LOG_LEVEL=warn"}})), bare)
		m.addCosts("unique-warn")
		bodies := m.fresh(n)
		unique := m.add("unique-info", m.drain(drain{bodies: bodies}))
		m.addCosts("unique-info")
		m.add("MB-resident-service", m.resident/1e6)
		m.ratio("unique-info/bare", unique, bare)
		m.ratio("duplicates/bare", m.add("duplicates", m.drain(drain{bodies: bodies, skipped: true})), bare)
		m.addCosts("duplicates")
		m.ratio("two-replicas/one", m.add("two-replicas", m.drain(drain{bodies: m.fresh(n), replicas: 2})), unique)
		for _, parallel := range naiveParallel {
			name := fmt.Sprint("naive-", parallel)
			m.ratio("unique-info/"+name, unique, m.add(name, m.naive(n*(parallel+3)/1000, parallel)))
		}
	}
	m.report("/s")
}

// BenchmarkLoneEvent measures one event at a time, from its publishing to its
// record, against what it is made of: a bare delivery and two writes in a row.
func BenchmarkLoneEvent(b *testing.B) {
	m := newMeasurement(b)
	s := m.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=error")
	m.waitPrimed("orders_ignored")
	m.publishBodies(orders("warm", 20)...)
	m.waitCounts(map[string]int64{"orders_new_order_ok": 20})
	recorded := m.watchRecords()
	publisher, stop := m.publisher("events")
	defer stop()
	deliver, stopDeliver := m.deliverBare()
	defer stopDeliver()
	for i := range 200 * *benchRounds {
		began := time.Now()
		publisher(fmt.Sprintf(`{"type":"new_order","id":"lone%d"}`, i))
		recorded(fmt.Sprint("lone", i))
		event := time.Since(began)
		bare := deliver()
		began = time.Now()
		for range 2 {
			if _, err := m.env.etcd.Put(context.Background(), "/probe", "x"); err != nil {
				b.Fatal(err)
			}
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

// BenchmarkRecorded compares an etcd that has many ids recorded with an empty
// one: the throughput of new ids, how long a replica takes from its start until
// it consumes, and the memory of the replica and of etcd.
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
		if round%2 == 1 { // the machine's drift meets both alike
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
		m.ratio("recorded/empty", rates[full], rates[empty])
		m.ratio("B-heap/id", heaps[full]-heaps[empty], float64(*benchRecorded+round*n)) // those of earlier rounds, too
		m.must(empty.Close())
	}
	b.ReportMetric(metric(b, full, "process_resident_memory_bytes")/1e6, "MB-resident-etcd-in-the-end")
	m.report("/s")
}

// heap is the live heap in bytes of a replica that has read all records.
func (m *measurement) heap(vars ...string) (bytes float64) {
	m.b.Helper()
	// A collection whenever the heap has grown by a twentieth, and its figures.
	s := m.start("orders", append(vars, "ENABLE_ETCD=true", "GOGC=5", "GODEBUG=gctrace=1")...)
	s.waitLog("msg=consuming")
	s.stop()
	for _, sizes := range regexp.MustCompile(`\d+->\d+->(\d+) MB`).FindAllStringSubmatch(s.log.String(), -1) {
		fmt.Sscan(sizes[1], &bytes)
	}
	return bytes * (1 << 20)
}

// BenchmarkRecordSize reports what a recorded id of ten bytes takes of etcd's
// quota, compacted and defragmented: recorded from a full queue, and one at a
// time.
func BenchmarkRecordSize(b *testing.B) {
	m := newMeasurement(b)
	id := func(i int) string { return fmt.Sprintf("%010d", i) }
	event := func(i int) string { return fmt.Sprintf(`{"type":"new_order","id":"%s"}`, id(i)) }
	empty := m.size()
	n := *benchEvents
	bodies := make([]string, n)
	for i := range bodies {
		bodies[i] = event(i)
	}
	m.drain(drain{bodies: bodies})
	bulk := m.size()
	b.ReportMetric((bulk-empty)/float64(n), "B/id-in-bulk")

	lone := n / 5
	s := m.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=error")
	recorded := m.watchRecords()
	publish, stop := m.publisher("events")
	defer stop()
	for i := n; i < n+lone; i++ {
		publish(event(i))
		recorded(id(i))
	}
	s.stop()
	b.ReportMetric((m.size()-bulk)/float64(lone), "B/id-one-at-a-time")
	b.ReportMetric(0, "ns/op")
}

// size is what etcd counts against its quota, in bytes, after a compaction and a
// defragmentation.
func (m *measurement) size() float64 {
	m.b.Helper()
	ctx, endpoint := context.Background(), m.server.Endpoint()
	status, err := m.env.etcd.Status(ctx, endpoint)
	m.must(err)
	_, err = m.env.etcd.Compact(ctx, status.Header.Revision, clientv3.WithCompactPhysical())
	m.must(err)
	_, err = m.env.etcd.Defragment(ctx, endpoint)
	m.must(err)
	status, err = m.env.etcd.Status(ctx, endpoint)
	m.must(err)
	return float64(status.DbSize)
}

// costs are µs of processor time an event.
type costs struct{ service, etcd, broker float64 }

// measurement is an env with a broker and an etcd of its own, and figures.
type measurement struct {
	*env
	b           *testing.B
	values      map[string][]float64
	order       []string
	run         int
	resident    float64       // bytes at the most, of the last service
	toConsuming time.Duration // of the last service, from its start
	cpu         costs         // of the last services' events
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
		m.b.Logf("%-24s median %10.2f  of %.2f", name, median(m.values[name]), m.values[name][:min(len(m.values[name]), 9)])
	}
}

// fresh returns n events with new ids.
func (m *measurement) fresh(n int) []string {
	m.run++
	return orders(fmt.Sprintf("run%d-", m.run), n)
}

// deliveries consumes from the role's queue with the prefetch of the service.
func (m *measurement) deliveries() (<-chan amqp.Delivery, func()) {
	conn, err := amqp.Dial(m.directAMQP)
	if err != nil {
		m.b.Fatal(err)
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Qos(1000, 0, false)
	}
	if err != nil {
		m.b.Fatal(err)
	}
	deliveries, err := ch.Consume("orders-queue", "", false, false, false, false, nil)
	if err != nil {
		m.b.Fatal(err)
	}
	return deliveries, func() { conn.Close() }
}

// bare acknowledges each message and does nothing else.
func (m *measurement) bare(n int) float64 {
	m.publishBodies(m.fresh(n)...)
	deliveries, stop := m.deliveries()
	defer stop()
	first := <-deliveries
	began := time.Now()
	first.Ack(false)
	for range n - 1 {
		d := <-deliveries
		d.Ack(false)
	}
	return float64(n-1) / time.Since(began).Seconds()
}

// naive claims and completes each id in transactions of its own, so many events
// at once.
func (m *measurement) naive(n, parallel int) float64 {
	m.publishBodies(m.fresh(n)...)
	deliveries, stop := m.deliveries()
	defer stop()
	began := time.Now()
	var wg sync.WaitGroup
	work := make(chan amqp.Delivery)
	for range parallel {
		wg.Go(func() {
			for d := range work {
				key := "/naive/" + string(d.Body)
				absent := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
				owned := clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
				for _, txn := range []clientv3.Txn{
					m.env.etcd.Txn(context.Background()).If(absent).Then(clientv3.OpPut(key, "claimed")),
					m.env.etcd.Txn(context.Background()).If(owned).Then(clientv3.OpPut(key, "done")),
				} {
					if _, err := txn.Commit(); err != nil {
						m.b.Error(err)
					}
				}
				d.Ack(false)
			}
		})
	}
	for range n {
		work <- <-deliveries
	}
	close(work)
	wg.Wait()
	return float64(n) / time.Since(began).Seconds()
}

// drain is how waiting events are drained by the real program.
type drain struct {
	bodies   []string
	skipped  bool // they are duplicates
	replicas int  // 0: one
	vars     []string
}

// drain starts the replicas, stops them while the events gather in the queue,
// and then lets them go on. It returns the events a second from the first that
// were counted.
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
		m.until(time.Millisecond, func() bool {
			resp, err := http.Get("http://" + port.Addr() + "/readyz")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
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
	service, etcd, broker := used(), m.spent(m.server.Server), m.spent(shared.rabbit.Server)
	for _, s := range replicas {
		s.signal(syscall.SIGCONT)
	}
	var first, last time.Time
	counted, before := 0, 0 // before: at first
	m.until(5*time.Millisecond, func() bool {
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
		return counted >= n
	})
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	m.cpu = costs{each(used() - service), each(m.spent(m.server.Server) - etcd), each(m.spent(shared.rabbit.Server) - broker)}
	for _, s := range replicas {
		var kB int
		fmt.Sscan(strings.SplitAfter(readFile(m.b, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid)), "VmHWM:")[1], &kB)
		m.resident = float64(kB) * 1024
		s.stop()
	}
	return float64(counted-before) / last.Sub(first).Seconds()
}

// until asks ok again and again until it is true.
func (m *measurement) until(pause time.Duration, ok func() bool) {
	m.b.Helper()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for timeout := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-timeout:
			m.b.Fatal("it takes too long")
		}
	}
}

// spent is the processor time that a server has used.
func (m *measurement) spent(s *stack.Server) time.Duration {
	d, err := s.CPU()
	if err != nil {
		m.b.Fatal(err)
	}
	return d
}

// watchRecords returns what waits until an id is recorded. Ids must be recorded
// in the order in which they are asked for.
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

// publisher returns what publishes one message to an exchange.
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

// deliverBare returns what measures one delivery from publishing to receiving,
// through an exchange and a durable queue as the service's.
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
