package main

import (
	"log/slog"
	"time"

	"github.com/streamdal/gophercon2021/svc/config"
)

// maxWait bounds how long a delivery waits for its handler. RabbitMQ closes a
// channel on which a delivery is not acknowledged within consumer_timeout, 30
// minutes by default, and delivers all of them again.
const maxWait = 20 * time.Minute

// heldDeliveries returns how many deliveries the broker sends before their
// acknowledgement: PREFETCH, but no more than the handlers finish within maxWait
// when each succeeds at the last moment of its first attempt. It logs the difference.
func heldDeliveries(cfg config.Config, log *slog.Logger) int {
	turns := int(maxWait / cfg.HandlerTimeout)
	if cfg.Concurrency == 1 {
		turns /= cfg.MaxAttempts // later events wait for all attempts
	}
	turns = max(turns, 1)
	held := min(turns, cfg.Prefetch) * min(cfg.Concurrency, cfg.Prefetch) // these do not overflow
	held = min(held, cfg.Prefetch)
	if held < cfg.Prefetch {
		log.Info("fewer deliveries than PREFETCH are held: the last one could wait longer than the broker allows",
			"held", held, "prefetch", cfg.Prefetch, "hint", "to hold more, raise CONCURRENCY or lower HANDLER_TIMEOUT")
	}
	return held
}

// maxInFlight returns how many deliveries are processed at once. That is twice
// those held: when a connection is lost, its deliveries are finished while they
// are already delivered again on the next. With CONCURRENCY=1 it is one, which
// keeps the order.
func maxInFlight(cfg config.Config, held int) int {
	if cfg.Concurrency == 1 {
		return 1
	}
	return 2 * held
}
