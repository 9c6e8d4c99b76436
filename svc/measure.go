package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/metrics"
)

// What is measured around the rule, so that the rule reads as it is.
const (
	timerHandle = "handle" // one attempt of the work
	timerClaim  = "claim"  // from asking for an id until it is granted or known to be done
)

// meteredClaims measures how long claims take, duplicates that wait included.
type meteredClaims struct {
	consume.Claimer
	meters *metrics.Recorder
}

func (m meteredClaims) Claim(ctx context.Context, id string) (*claim.Claim, error) {
	began := time.Now()
	c, err := m.Claimer.Claim(ctx, id)
	m.meters.Time(timerClaim, time.Since(began))
	return c, err
}

func meteredHandler(work consume.Handler, meters *metrics.Recorder) consume.Handler {
	return func(ctx context.Context, job consume.Job) error {
		began := time.Now()
		err := work(ctx, job)
		meters.Time(timerHandle, time.Since(began))
		return err
	}
}

// meteredDelivery counts the deliveries in flight. Their handlers run until
// handlerCtx ends.
func meteredDelivery(handlerCtx context.Context, handle func(ctx, handlerCtx context.Context, d consume.Delivery), stats *stats) func(context.Context, consume.Delivery) {
	return func(ctx context.Context, d consume.Delivery) {
		stats.inFlight.Add(1)
		defer stats.inFlight.Add(-1)
		handle(ctx, handlerCtx, d)
	}
}

// stats is what /stats shows.
type stats struct {
	meters   *metrics.Recorder
	prefix   string
	inFlight atomic.Int64               // deliveries between their arrival and their end; not for statsd, where replicas would overwrite it
	claims   atomic.Pointer[claim.Etcd] // nil: without etcd, or not yet
}

// totals returns what was counted, how many events are in flight, how many ids are
// remembered, and how far back that reaches; 0 if nothing is forgotten.
func (s *stats) totals() map[string]int64 {
	totals := s.meters.Totals()
	totals[s.prefix+"in_flight"] = s.inFlight.Load()
	if claims := s.claims.Load(); claims != nil {
		totals[s.prefix+"ids_remembered"] = int64(claims.Remembered())
		totals[s.prefix+"memory_reach_seconds"] = int64(claims.MemoryReach(context.Background()) / time.Second)
	}
	return totals
}
