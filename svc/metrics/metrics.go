// Package metrics counts in the process and tells statsd.
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

// Counters are a fixed set of statsd counters. They are added up here and sent
// a few times a second, at rate 1, however many events there are: a statsd that
// is away, or whose name cannot be resolved, costs the service nothing.
type Counters struct {
	counts map[string]*counter // read-only
	addr   string
	away   *outage.Log
	client statsd.Statter // nil: not resolved yet
	tried  time.Time      // when it could not be resolved last

	quit, done chan struct{}
}

type counter struct {
	name  string // at statsd
	total atomic.Int64

	// The reporter's own.
	sent   int64 // of total
	primed bool  // sent at least once
}

// Report starts to report counters with these names, prefixed with prefix, to
// the statsd at addr ("host:port", UDP). Each is sent once with 0, so that
// Graphite shows it before anything happens. Close it.
func Report(addr, prefix string, names []string, log *slog.Logger) *Counters {
	c := &Counters{
		counts: make(map[string]*counter), addr: addr, away: outage.New(log, "statsd", "counts are kept until it is found"),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for _, name := range names {
		c.counts[name] = &counter{name: prefix + name}
	}
	go c.run()
	return c
}

// Count adds one to a counter. It panics if there is none of that name.
func (c *Counters) Count(name string) { c.counts[name].total.Add(1) }

// Totals returns what has been counted since the start, by statsd's names.
func (c *Counters) Totals() map[string]int64 {
	totals := make(map[string]int64, len(c.counts))
	for _, counter := range c.counts {
		totals[counter.name] = counter.total.Load()
	}
	return totals
}

// Close sends what has not been sent. It does not wait for a look-up that
// hangs: statsd never holds the service up.
func (c *Counters) Close() {
	close(c.quit)
	select {
	case <-c.done:
	case <-time.After(time.Second):
	}
}

func (c *Counters) run() {
	defer close(c.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if c.connect() {
			c.flush()
		}
		select {
		case <-tick.C:
		case <-c.quit:
			if c.client != nil {
				c.flush()
				c.client.Close()
			}
			return
		}
	}
}

// connect makes the client, which fails as long as the name of statsd's host
// cannot be resolved. UDP has no connection to fail.
func (c *Counters) connect() bool {
	if c.client != nil {
		return true
	}
	if time.Since(c.tried) < redial {
		return false
	}
	client, err := statsd.NewClientWithConfig(&statsd.ClientConfig{Address: c.addr, ResInterval: reresolve})
	if err != nil {
		c.tried = time.Now()
		c.away.Failed(err, "check STATSD_ADDR")
		return false
	}
	c.away.Answered()
	c.client = client
	return true
}

// flush sends what has been counted since the last time. What cannot be sent
// now is sent later.
func (c *Counters) flush() {
	for _, counter := range c.counts {
		total := counter.total.Load()
		if total == counter.sent && counter.primed {
			continue
		}
		if err := c.client.Inc(counter.name, total-counter.sent, 1); err == nil {
			counter.sent, counter.primed = total, true
		}
	}
}
