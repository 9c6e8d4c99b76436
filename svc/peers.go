package main

import (
	"cmp"
	"log/slog"
	"time"
)

// peers compares two numbers that are equal where all is well: the role's sessions in etcd,
// and the consumers of its queue. It warns once a direction when they have differed for
// longer than after: a process that has died lives on in etcd for CLAIM_TTL.
type peers struct {
	sessions func() int // 0: not known
	after    time.Duration
	log      *slog.Logger

	direction int // more consumers: 1; more sessions: -1
	since     time.Time
	warned    [2]bool
}

// consumers is told the number of the queue's consumers, every few seconds.
func (p *peers) consumers(n int) {
	sessions := p.sessions()
	direction := cmp.Compare(n, sessions)
	if direction != p.direction || sessions == 0 {
		p.direction, p.since = direction, time.Now()
	}
	if direction == 0 || time.Since(p.since) < p.after || p.warned[(direction+1)/2] {
		return
	}
	p.warned[(direction+1)/2] = true
	message, hint := "the queue has more consumers than the role has sessions in etcd: somebody consumes without claiming ids, and events are done twice",
		"stop services that run without ENABLE_ETCD=true (`go run` leaves its child running when it is killed); a replica may be cut off from etcd"
	if direction < 0 {
		message, hint = "the role has more sessions in etcd than its queue has consumers: services of another broker or environment may share these ids, and events are skipped that were never done",
			"give each environment an ETCD_PREFIX of its own; a replica may be cut off from the broker"
	}
	p.log.Warn(message, "consumers", n, "sessions", sessions, "hint", hint)
}
