// Package health says over HTTP how the service is: whether it lives, whether
// it is ready, and what it has counted.
package health

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// Board is the state of the parts that the service needs. It is ready when all
// of them are.
type Board struct {
	mu    sync.Mutex
	parts map[string]*part
	since time.Time // when it became ready, or stopped being so
}

type part struct {
	err   error // nil: it is well
	since time.Time
}

// errStarting is the state of a part that nobody has told of yet.
var errStarting = errors.New("starting")

// NewBoard returns a board on which no part is ready yet.
func NewBoard(parts ...string) *Board {
	b := &Board{parts: make(map[string]*part), since: time.Now()}
	for _, name := range parts {
		b.parts[name] = &part{err: errStarting, since: b.since}
	}
	return b
}

// Set notes the state of a part: nil, or what is wrong with it.
func (b *Board) Set(name string, err error) {
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

func (b *Board) ready() bool {
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

// Probe asks a server now and then how it is, until ctx ends: an idle service
// would not notice otherwise that one has gone.
func (b *Board) Probe(ctx context.Context, name string, ask func(context.Context) error) {
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

// report is what /readyz answers.
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

func (b *Board) report() report {
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
func (b *Board) Handler(stats func() map[string]int64) http.Handler {
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
