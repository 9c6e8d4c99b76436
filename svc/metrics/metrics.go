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
	interval     = 250 * time.Millisecond // between two reports to statsd
	resend       = 5 * time.Second        // of a counter that has not changed, for a statsd that has just started
	reresolve    = 10 * time.Second       // between two look-ups of its name
	redial       = 5 * time.Second        // between two attempts to look it up at first
	maxCloseWait = 200 * time.Millisecond
)

// Names are the metrics of a Recorder.
type Names struct{ Counters, Timers []string }

// Recorder is a fixed set of statsd metrics. It gathers them in the process and
// sends them a few times a second, counters at rate 1, however many events there
// are. A statsd that is down, or whose name cannot be resolved, costs the service
// nothing.
type Recorder struct {
	counts map[string]*counter // these two are read-only
	timers map[string]*timer
	addr   string
	outage *outage.Log

	quit, done chan struct{}
}

type counter struct {
	name  string // at statsd
	total atomic.Int64

	// Used only by the goroutine that reports.
	sent     int64     // of total
	lastSent time.Time // zero: never
}

// Start returns a Recorder that sends metrics with these names, prefixed with prefix, to
// the statsd at addr ("host:port", UDP). Each counter is sent with 0 at first, and
// again every 5 s while it does not change, so that Graphite shows it before
// anything happens even if statsd starts later than the service. Close it.
func Start(addr, prefix string, names Names, log *slog.Logger) *Recorder {
	r := &Recorder{
		counts: make(map[string]*counter), timers: make(map[string]*timer),
		addr: addr, outage: &outage.Log{
			Logger: log, Level: slog.LevelWarn,
			Begins: "statsd is unreachable: counts are kept until it is found", Ends: "statsd is reachable again", Hint: "check STATSD_ADDR",
		},
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for _, name := range names.Counters {
		r.counts[name] = &counter{name: prefix + name}
	}
	for _, name := range names.Timers {
		r.timers[name] = &timer{name: prefix + name}
	}
	go r.run()
	return r
}

// Count adds one to a counter. Like Time, it panics if there is none of that
// name.
func (r *Recorder) Count(name string) { r.counts[name].total.Add(1) }

// Time notes how long something took, for a timer.
func (r *Recorder) Time(name string, d time.Duration) { r.timers[name].add(d) }

// Totals returns what has been counted since the start, by statsd's names.
func (r *Recorder) Totals() map[string]int64 {
	totals := make(map[string]int64, len(r.counts))
	for _, counter := range r.counts {
		totals[counter.name] = counter.total.Load()
	}
	return totals
}

// Close sends what has not been sent. If a look-up hangs, it gives up after maxCloseWait.
func (r *Recorder) Close() {
	close(r.quit)
	select {
	case <-r.done:
	case <-time.After(maxCloseWait):
	}
}

func (r *Recorder) run() {
	defer close(r.done)
	if client := r.dial(); client != nil {
		defer client.Close()
		r.report(client)
	}
}

// dial makes the client, which fails as long as the name of statsd's host cannot be
// resolved: UDP has no connection to fail. It returns nil if Close is called first.
func (r *Recorder) dial() statsd.Statter {
	for {
		began := time.Now()
		client, err := statsd.NewClientWithConfig(&statsd.ClientConfig{Address: r.addr, ResInterval: reresolve})
		if err == nil {
			r.outage.Answered(began)
			client.(*statsd.Client).SetSamplerFunc(func(float32) bool { return true }) // timers are samples already
			return client
		}
		r.outage.Failed(began, err, "")
		select {
		case <-time.After(redial):
		case <-r.quit:
			return nil
		}
	}
}

// report sends what is counted and measured, until Close is called.
func (r *Recorder) report(client statsd.Statter) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		r.flush(client)
		select {
		case <-tick.C:
		case <-r.quit:
			r.flush(client)
			return
		}
	}
}

// flush sends what has been counted since the last time. What cannot be sent
// now is sent later.
func (r *Recorder) flush(client statsd.Statter) {
	for _, counter := range r.counts {
		total := counter.total.Load()
		if total == counter.sent && time.Since(counter.lastSent) < resend {
			continue
		}
		if err := client.Inc(counter.name, total-counter.sent, 1); err == nil {
			counter.sent, counter.lastSent = total, time.Now()
		}
	}
	for _, timer := range r.timers {
		timer.flush(client)
	}
}
