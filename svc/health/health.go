// Package health answers over HTTP whether the service is alive, whether it is
// ready, and what it has counted.
package health

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"
)

// Status holds the state of the parts that the service needs. The service is ready
// when all of them are.
type Status struct {
	mu    sync.Mutex
	state report
}

// report is the answer of /readyz.
type report struct {
	Ready bool            `json:"ready"`
	Since time.Time       `json:"since"` // when it became ready, or stopped being so
	Parts map[string]part `json:"parts"`
}

type part struct {
	Ready bool      `json:"ready"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
}

// NewStatus returns a Status with no part ready yet.
func NewStatus(parts ...string) *Status {
	s := &Status{state: report{Since: time.Now(), Parts: make(map[string]part)}}
	for _, name := range parts {
		s.state.Parts[name] = part{Since: s.state.Since, Error: "starting"}
	}
	return s
}

// Set sets the state of a part: nil if it is ready, otherwise the reason.
func (s *Status) Set(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	p := part{Ready: err == nil, Since: now}
	if err != nil {
		p.Error = err.Error()
	}
	if before := s.state.Parts[name]; before.Ready == p.Ready {
		p.Since = before.Since
	}
	s.state.Parts[name] = p
	ready := true
	for _, p := range s.state.Parts {
		ready = ready && p.Ready
	}
	if ready != s.state.Ready {
		s.state.Ready, s.state.Since = ready, now
	}
}

func (s *Status) report() report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.state
	r.Parts = maps.Clone(r.Parts)
	return r
}

const (
	probeEvery   = time.Second
	probeTimeout = time.Second
)

// Probe asks for the state of a part every second, until the returned function is called:
// otherwise an idle service would not notice that a server is unreachable.
func (s *Status) Probe(name string, ask func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var probe sync.WaitGroup
	probe.Go(func() {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			asked, cancel := context.WithTimeout(ctx, probeTimeout)
			err := ask(asked)
			cancel()
			if ctx.Err() != nil {
				return
			}
			s.Set(name, err)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		probe.Wait()
	}
}

// Handler answers
//
//	/healthz  200: the process works
//	/readyz   200 if every part is ready, otherwise 503; the state of each part, and since when
//	/stats    the counters by name, as counted in this process: no packet is lost
func (s *Status) Handler(stats func() map[string]int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := s.report()
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
