package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	benchRounds = flag.Int("rounds", 5, "rounds of each benchmark; medians are reported")
	benchEvents = flag.Int("events", 20_000, "events a measurement")
)

// naiveParallel is how many events the naive way, one id a transaction, works on
// at once: one after the other; as many as the store has transactions in flight,
// which shows what grouping is worth; as many as the service runs handlers.
var naiveParallel = []int{1, 4, 32}

// BenchmarkThroughput drains a queue of waiting events in several ways, one
// after the other in each round, and reports the medians: events a second, and
// ratios of the same round. Everything runs on this machine, whose speed
// drifts: only the ratios mean anything.
func BenchmarkThroughput(b *testing.B) {
	n := *benchEvents
	m := newMeasurement(b)
	for range *benchRounds {
		bare := m.add("bare-consumer", m.bare(n))
		etcd := m.add("etcd-alone", m.etcdAlone(n))
		both := 1 / (1/bare + 1/etcd)
		m.add("bare+etcd", both)
		m.ratio("state-off/bare", m.add("state-off", m.service(n, "", "ENABLE_ETCD=false")), bare)
		unique := m.add("unique", m.service(n, "", "ENABLE_ETCD=true"))
		m.add("µs-cpu-unique-service", m.cpu.service)
		m.add("µs-cpu-unique-etcd", m.cpu.etcd)
		m.add("µs-cpu-unique-broker", m.cpu.broker)
		m.ratio("unique/(bare+etcd)", unique, both)
		m.ratio("unique/bare", unique, bare)
		m.ratio("duplicates/bare", m.add("duplicates", m.duplicates(n)), bare)
		m.add("µs-cpu-duplicates-service", m.cpu.service)
		for _, parallel := range naiveParallel {
			name := fmt.Sprint("naive-", parallel)
			m.ratio("unique/"+name, unique, m.add(name, m.naive(n*(parallel+3)/400, parallel)))
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
	watch := m.env.etcd.Watch(context.Background(), "/service/orders/", clientv3.WithPrefix())
	publisher, stop := m.publisher("events")
	defer stop()
	deliver, stopDeliver := m.deliverBare()
	defer stopDeliver()
	for i := range 200 * *benchRounds {
		began := time.Now()
		publisher(fmt.Sprintf(`{"type":"new_order","id":"lone%d"}`, i))
		for recorded := false; !recorded; {
			for _, e := range (<-watch).Events {
				recorded = recorded || strings.HasPrefix(string(e.Kv.Value), "done ")
			}
		}
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

// BenchmarkMillionRecorded compares the throughput with a million recorded ids
// with that of an empty etcd.
func BenchmarkMillionRecorded(b *testing.B) {
	n := 5 * *benchEvents // about as many as etcd does between two garbage collections, which a million records make long
	m := newMeasurement(b)
	million := startEtcd(b)
	client, err := million.Client()
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	preload(b, client, 1_000_000)
	b.ReportMetric(resident(b, million)/1e6, "MB-resident-etcd")
	for round := range *benchRounds {
		empty := startEtcd(b)
		names := map[*stack.Etcd]string{empty: "empty", million: "million"}
		turns := []*stack.Etcd{empty, million}
		if round%2 == 1 { // the machine's drift meets both alike
			slices.Reverse(turns)
		}
		rates := make(map[*stack.Etcd]float64)
		for _, etcd := range turns {
			m.server = etcd
			rates[etcd] = m.add(names[etcd], m.service(n, "", "ENABLE_ETCD=true", "ETCD_ENDPOINTS="+etcd.Endpoint()))
			m.add("µs-cpu-"+names[etcd]+"-service", m.cpu.service)
			m.add("µs-cpu-"+names[etcd]+"-etcd", m.cpu.etcd)
		}
		m.ratio("million/empty", rates[million], rates[empty])
		if err := empty.Close(); err != nil {
			b.Fatal(err)
		}
	}
	m.report("/s")
}

// BenchmarkMemory reports the resident set of a service with default settings
// that has 100,000 ids cached and drains a full queue, and what the records of
// all these ids take in etcd's file: as long as the old revisions of the keys
// are there, and after a compaction.
func BenchmarkMemory(b *testing.B) {
	m := newMeasurement(b)
	m.service(100_000, "", "ENABLE_ETCD=true")
	m.service(50_000, "", "ENABLE_ETCD=true") // this one has warmed its cache
	b.ReportMetric(m.resident/1e6, "MB-resident")
	ctx := context.Background()
	size := func() (bytes float64, revision int64) {
		status, err := m.env.etcd.Status(ctx, m.server.Endpoint())
		if err != nil {
			b.Fatal(err)
		}
		return float64(status.DbSizeInUse), status.Header.Revision
	}
	before, revision := size()
	b.ReportMetric(before/150_000, "B/id-in-etcd")
	if _, err := m.env.etcd.Compact(ctx, revision, clientv3.WithCompactPhysical()); err != nil {
		b.Fatal(err)
	}
	if _, err := m.env.etcd.Put(ctx, "/probe", ""); err != nil { // the size is known at the next commit
		b.Fatal(err)
	}
	<-time.After(time.Second)
	after, _ := size()
	b.ReportMetric(after/150_000, "B/id-in-etcd-compacted")
	b.ReportMetric(0, "ns/op")
}

// resident is the memory that etcd says it has, in bytes.
func resident(b *testing.B, etcd *stack.Etcd) float64 {
	b.Helper()
	resp, err := http.Get("http://" + etcd.Endpoint() + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\nprocess_resident_memory_bytes ")
	var bytes float64
	if _, err := fmt.Sscan(rest, &bytes); !found || err != nil {
		b.Fatalf("etcd does not say how much memory it has: %v", err)
	}
	return bytes
}

// costs are µs of processor time an event.
type costs struct{ service, etcd, broker float64 }

// measurement is an env with a broker and an etcd of its own, and figures.
type measurement struct {
	*env
	b        *testing.B
	values   map[string][]float64
	order    []string
	run      int
	resident float64 // bytes, of the last service
	cpu      costs   // of the last service's events
	server   *stack.Etcd
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

func (m *measurement) ratio(name string, a, b float64) { m.add(name, a/b) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func (m *measurement) report(unit string) {
	for name, v := range m.values {
		u := name
		if !strings.Contains(name, "/") && !strings.HasPrefix(name, "µs") && unit != "" {
			u += unit
		}
		m.b.ReportMetric(median(v), u)
	}
	m.b.ReportMetric(0, "ns/op")
	for _, name := range m.order {
		m.b.Logf("%-24s median %10.2f  of %.2f", name, median(m.values[name]), m.values[name][:min(len(m.values[name]), 9)])
	}
}

// fill publishes n events with new ids.
func (m *measurement) fill(n int) {
	m.run++
	m.publishBodies(orders(fmt.Sprintf("run%d-", m.run), n)...)
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
	m.fill(n)
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
	m.fill(n)
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

// etcdAlone claims and completes ids, 120 a transaction, 4 in flight.
func (m *measurement) etcdAlone(n int) float64 {
	const batch, parallel = 120, 4
	m.run++
	ctx := context.Background()
	lease, err := m.env.etcd.Grant(ctx, 3600)
	if err != nil {
		m.b.Fatal(err)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for p := range parallel {
		wg.Go(func() {
			for i := p * batch; i < n; i += parallel * batch {
				token := int64(0)
				for _, value := range []string{"claimed 0123456789abcdef", "done 1795417557"} {
					var cmp []clientv3.Cmp
					var put []clientv3.Op
					for j := i; j < min(i+batch, n); j++ {
						key := fmt.Sprintf("/service/alone/%02x/run%d-%d", j%256, m.run, j)
						cmp = append(cmp, clientv3.Compare(clientv3.CreateRevision(key), "=", token))
						put = append(put, clientv3.OpPut(key, value, clientv3.WithLease(lease.ID)))
					}
					resp, err := m.env.etcd.Txn(ctx).If(cmp...).Then(put...).Commit()
					if err != nil || !resp.Succeeded {
						m.b.Errorf("etcd alone: %v", err)
						return
					}
					token = resp.Header.Revision
				}
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(began).Seconds()
}

// service drains n new events with the real program. Its log goes to a file,
// whose times are what is measured.
func (m *measurement) service(n int, outcome string, vars ...string) float64 {
	m.fill(n)
	if outcome == "" {
		outcome = "processed"
	}
	return m.drain(n, outcome, vars...)
}

// duplicates drains n events whose ids are done and in the cache.
func (m *measurement) duplicates(n int) float64 {
	m.fill(n)
	m.drain(n, "processed", "ENABLE_ETCD=true")
	m.run-- // the same ids
	m.fill(n)
	return m.drain(n, "skipped", "ENABLE_ETCD=true")
}

func (m *measurement) drain(n int, outcome string, vars ...string) float64 {
	m.b.Helper()
	path := filepath.Join(m.b.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		m.b.Fatal(err)
	}
	defer log.Close()
	counter := map[string]string{"processed": "orders_new_order_ok", "skipped": "orders_new_order_skipped"}[outcome]
	before := m.statsd.Counts()[counter]
	s := m.startLogging("orders", log, vars...)
	eventually(m.b, "it consumes", func() error {
		if !strings.Contains(readFile(m.b, path), "msg=consuming") {
			return errNotYet
		}
		return nil
	})
	service, etcd, broker := s.cpu(), m.spent(m.server.Server), m.spent(shared.rabbit.Server)
	m.waitCounts(map[string]int64{counter: before + int64(n)})
	var size int
	fmt.Sscanf(strings.SplitAfter(readFile(m.b, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid)), "VmHWM:")[1], "%d", &size)
	m.resident = float64(size) * 1024
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	m.cpu = costs{each(s.cpu() - service), each(m.spent(m.server.Server) - etcd), each(m.spent(shared.rabbit.Server) - broker)}
	s.stop()
	return rate(m.b, readFile(m.b, path), "msg="+outcome)
}

// spent is the processor time that a server has used.
func (m *measurement) spent(s *stack.Server) time.Duration {
	d, err := s.CPU()
	if err != nil {
		m.b.Fatal(err)
	}
	return d
}

// rate returns the lines a second that contain part.
func rate(b *testing.B, log, part string) float64 {
	var first, last time.Time
	n := -1
	for line := range strings.Lines(log) {
		if !strings.Contains(line, part) {
			continue
		}
		n++
		text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			b.Fatal(err)
		}
		if n == 0 {
			first = at
		}
		last = at
	}
	return float64(n) / last.Sub(first).Seconds()
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

// preload records ids as done, as the service would, only faster.
func preload(b *testing.B, client *clientv3.Client, ids int) {
	b.Helper()
	ctx := context.Background()
	const batch, perLease, parallel = 120, 4800, 4
	var wg sync.WaitGroup
	for p := range parallel {
		wg.Go(func() {
			for i := p * perLease; i < ids; i += parallel * perLease {
				lease, err := client.Grant(ctx, 86400)
				if err != nil {
					b.Error(err)
					return
				}
				for j := i; j < min(i+perLease, ids); j += batch {
					var put []clientv3.Op
					for k := j; k < min(j+batch, ids); k++ {
						put = append(put, clientv3.OpPut(fmt.Sprintf("/service/orders/%02x/recorded-%08d", k%256, k), "done 1795417557", clientv3.WithLease(lease.ID)))
					}
					if _, err := client.Txn(ctx).Then(put...).Commit(); err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
