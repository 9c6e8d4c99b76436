package main

import (
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/config"
)

// maxWait is how long the attempts at one event may take. RabbitMQ closes a channel on which a
// delivery is not acknowledged within consumer_timeout, 30 minutes by default.
const maxWait = 20 * time.Minute

// held is how many deliveries are held: few, so that other replicas get their share and a
// crash gives little back, or as many as PREFETCH says, if the handlers are fast.
type held struct {
	low, most   int
	maxInFlight int // deliveries processed at once
	concurrency int

	mu   sync.Mutex
	need time.Duration // how long the handlers need for as many deliveries as most
}

func newHeld(cfg config.Config) *held {
	low := min(cfg.Prefetch, 2*cfg.Concurrency)
	if cfg.Concurrency == 1 { // the second is there when the first is done
		return &held{low: low, most: low, concurrency: 1, maxInFlight: 1} // keeps the order
	}
	// When a connection is lost, its deliveries are finished while they are already
	// delivered again on the next.
	return &held{low: low, most: cfg.Prefetch, concurrency: cfg.Concurrency, maxInFlight: 2 * cfg.Prefetch}
}

// ran notes how long a handler ran. What counts are the last attempts, as many as are held.
func (h *held) ran(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.need += d/time.Duration(h.concurrency) - h.need/time.Duration(h.most)
}

// slow reports whether the handlers need longer than ten seconds for what is held.
func (h *held) slow() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.need > 10*time.Second
}
