// Package health answers over HTTP whether the service is alive, whether it is
// ready, and what it has counted.
package health

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// Status holds the state of the parts that the service needs. The service is ready
// when all of them are.
type Status struct {
	mu    sync.Mutex
	parts map[string]*part
	since time.Time // when it became ready, or stopped being so
}

type part struct {
	err   error // nil: ready
	since time.Time
}

// errStarting is the state of a part until Set is called for it.
var errStarting = errors.New("starting")

// NewStatus returns a Status with no part ready yet.
func NewStatus(parts ...string) *Status {
	b := &Status{parts: make(map[string]*part), since: time.Now()}
	for _, name := range parts {
		b.parts[name] = &part{err: errStarting, since: b.since}
	}
	return b
}

// Set sets the state of a part: nil if it is ready, otherwise the reason.
func (b *Status) Set(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, p := b.ready(), b.parts[name]
	if (p.err == nil) != (err == nil) {
		p.since = time.Now()
	}
	p.err = err
	if b.ready() != was {
		b.since = time.Now()
	}
}

func (b *Status) ready() bool {
	for _, p := range b.parts {
		if p.err != nil {
			return false
		}
	}
	return true
}

const (
	probeEvery   = time.Second
	probeTimeout = time.Second
)

// Probe asks a server every second, until ctx ends, and sets its part: otherwise an
// idle service would not notice that the server is unreachable.
func (b *Status) Probe(ctx context.Context, name string, ask func(context.Context) error) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		err := ask(probe)
		cancel()
		if ctx.Err() != nil {
			return
		}
		b.Set(name, err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// report is the answer of /readyz.
type report struct {
	Ready bool             `json:"ready"`
	Since time.Time        `json:"since"`
	Parts map[string]state `json:"parts"`
}

type state struct {
	Ready bool      `json:"ready"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
}

func (b *Status) report() report {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := report{Ready: b.ready(), Since: b.since, Parts: make(map[string]state)}
	for name, p := range b.parts {
		s := state{Ready: p.err == nil, Since: p.since}
		if p.err != nil {
			s.Error = p.err.Error()
		}
		r.Parts[name] = s
	}
	return r
}

// Handler answers
//
//	/healthz  200: the process works
//	/readyz   200 if every part is ready, else 503; which is not, and since when
//	/stats    the counters by name, as counted in this process: no packet is lost
func (b *Status) Handler(stats func() map[string]int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := b.report()
		status := http.StatusOK
		if !r.Ready {
			status = http.StatusServiceUnavailable
		}
		answer(w, status, r)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, stats())
	})
	return mux
}
