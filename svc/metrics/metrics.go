// Package metrics counts and measures in the process and tells statsd.
package metrics

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cactus/go-statsd-client/v5/statsd"
	"github.com/streamdal/gophercon2021/svc/outage"
)

const (
	interval  = 250 * time.Millisecond // between two reports to statsd
	reresolve = 10 * time.Second       // between two look-ups of its name
	redial    = 5 * time.Second        // between two tries to look it up at first
)

// Names are what there is to measure.
type Names struct{ Counters, Timers, Gauges []string }

// Meters are a fixed set of statsd metrics. They are gathered here and sent a
// few times a second, counters and gauges at rate 1, however many events there
// are: a statsd that is away, or whose name cannot be resolved, costs the
// service nothing.
type Meters struct {
	counts map[string]*counter // these three are read-only
	timers map[string]*timer
	gauges map[string]*gauge
	addr   string
	away   *outage.Log
	client statsd.Statter    // nil: not resolved yet
	times  statsd.SubStatter // of client; takes what is a sample already
	tried  time.Time         // when it could not be resolved last

	quit, done chan struct{}
}

type counter struct {
	name  string // at statsd
	total atomic.Int64

	// The reporter's own.
	sent   int64 // of total
	primed bool  // sent at least once
}

// Report starts to report metrics with these names, prefixed with prefix, to
// the statsd at addr ("host:port", UDP). Each counter and gauge is sent once
// with 0, so that Graphite shows it before anything happens. Close it.
func Report(addr, prefix string, names Names, log *slog.Logger) *Meters {
	m := &Meters{
		counts: make(map[string]*counter), timers: make(map[string]*timer), gauges: make(map[string]*gauge),
		addr: addr, away: outage.New(log, "statsd", "counts are kept until it is found"),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for _, name := range names.Counters {
		m.counts[name] = &counter{name: prefix + name}
	}
	for _, name := range names.Timers {
		m.timers[name] = &timer{name: prefix + name}
	}
	for _, name := range names.Gauges {
		m.gauges[name] = &gauge{name: prefix + name}
	}
	go m.run()
	return m
}

// Count adds one to a counter. Like Time and Gauge, it panics if there is none
// of that name.
func (m *Meters) Count(name string) { m.counts[name].total.Add(1) }

// Time notes how long something took, for a timer.
func (m *Meters) Time(name string, d time.Duration) { m.timers[name].add(d) }

// Gauge raises or lowers a gauge.
func (m *Meters) Gauge(name string, delta int64) { m.gauges[name].value.Add(delta) }

// Totals returns what has been counted since the start, and what the gauges
// show, by statsd's names.
func (m *Meters) Totals() map[string]int64 {
	totals := make(map[string]int64, len(m.counts)+len(m.gauges))
	for _, counter := range m.counts {
		totals[counter.name] = counter.total.Load()
	}
	for _, gauge := range m.gauges {
		totals[gauge.name] = gauge.value.Load()
	}
	return totals
}

// Close sends what has not been sent. It does not wait for a look-up that
// hangs: statsd never holds the service up.
func (m *Meters) Close() {
	close(m.quit)
	select {
	case <-m.done:
	case <-time.After(time.Second):
	}
}

func (m *Meters) run() {
	defer close(m.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if m.connect() {
			m.flush()
		}
		select {
		case <-tick.C:
		case <-m.quit:
			if m.client != nil {
				m.flush()
				m.client.Close()
			}
			return
		}
	}
}

// connect makes the client, which fails as long as the name of statsd's host
// cannot be resolved. UDP has no connection to fail.
func (m *Meters) connect() bool {
	if m.client != nil {
		return true
	}
	if time.Since(m.tried) < redial {
		return false
	}
	began := time.Now()
	client, err := statsd.NewClientWithConfig(&statsd.ClientConfig{Address: m.addr, ResInterval: reresolve})
	if err != nil {
		m.tried = time.Now()
		m.away.Failed(began, err, "check STATSD_ADDR")
		return false
	}
	m.away.Answered(began)
	m.client, m.times = client, client.NewSubStatter("")
	m.times.SetSamplerFunc(func(float32) bool { return true })
	return true
}

// flush sends what has been counted since the last time. What cannot be sent
// now is sent later.
func (m *Meters) flush() {
	for _, counter := range m.counts {
		total := counter.total.Load()
		if total == counter.sent && counter.primed {
			continue
		}
		if err := m.client.Inc(counter.name, total-counter.sent, 1); err == nil {
			counter.sent, counter.primed = total, true
		}
	}
	for _, timer := range m.timers {
		timer.flush(m.times)
	}
	for _, gauge := range m.gauges {
		gauge.flush(m.client)
	}
}
