package main

import "time"

// maxWait bounds how long a delivery waits for its handler. RabbitMQ closes a
// channel on which a delivery is not acknowledged within consumer_timeout, 30
// minutes by default, and delivers all of them again.
const maxWait = 20 * time.Minute

// held returns how many deliveries the broker sends before their
// acknowledgement: PREFETCH, but no more than the handlers finish within maxWait
// when each takes all of HANDLER_TIMEOUT.
func held(cfg Config) int {
	longest := cfg.HandlerTimeout
	if cfg.Concurrency == 1 {
		longest *= time.Duration(cfg.MaxAttempts) // those behind wait for all attempts
	}
	if longest <= 0 || longest > maxWait { // an overflow, too
		longest = maxWait
	}
	turns := int(maxWait / longest)
	if turns >= cfg.Prefetch { // and so the product below cannot overflow
		return cfg.Prefetch
	}
	return min(cfg.Prefetch, min(cfg.Concurrency, cfg.Prefetch)*turns)
}

// maxInFlight returns how many deliveries are processed at once. That is twice
// those held: when a connection is lost, its deliveries are finished while they
// are already delivered again on the next. With CONCURRENCY=1 it is one, which
// keeps the order.
func maxInFlight(cfg Config, held int) int {
	if cfg.Concurrency == 1 {
		return 1
	}
	return 2 * held
}
