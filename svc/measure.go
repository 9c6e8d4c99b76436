package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/metrics"
)

// The timers.
const (
	timerHandle = "handle" // one attempt of the work
	timerClaim  = "claim"  // from asking for an id until it is granted or known to be done
)

// timedClaims measures how long claims take, including duplicates that wait.
type timedClaims struct {
	consume.Claimer
	recorder *metrics.Recorder
}

func (m timedClaims) Claim(ctx context.Context, id string) (*claim.Claim, error) {
	began := time.Now()
	c, err := m.Claimer.Claim(ctx, id)
	m.recorder.Time(timerClaim, time.Since(began))
	return c, err
}

// timedHandler measures attempts.
func timedHandler(work consume.Handler, recorder *metrics.Recorder, held *held) consume.Handler {
	return func(ctx context.Context, job consume.Job) error {
		began := time.Now()
		err := work(ctx, job)
		took := time.Since(began)
		recorder.Time(timerHandle, took)
		held.ran(took)
		return err
	}
}

// stats collects what /stats shows.
type stats struct {
	recorder *metrics.Recorder
	prefix   string
	inFlight atomic.Int64               // deliveries between their arrival and their end; not for statsd, where replicas would overwrite it
	claims   atomic.Pointer[claim.Etcd] // nil: without etcd, or not yet
}

// totals returns what was counted, how many events are being processed, how many ids are
// remembered, and how far back that reaches; 0 if that is for ever or not known.
func (s *stats) totals() map[string]int64 {
	totals := s.recorder.Totals()
	totals[s.prefix+"in_flight"] = s.inFlight.Load()
	if claims := s.claims.Load(); claims != nil {
		totals[s.prefix+"ids_remembered"] = int64(claims.Remembered())
		totals[s.prefix+"memory_reach_seconds"] = int64(claims.MemoryReach(context.Background()) / time.Second)
	}
	return totals
}
