package main

import (
	"slices"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// Scenes 1 to 3, from the talk.

// consumeAndProduce shows that both services get every event.
func consumeAndProduce(s *script) {
	const n = 60
	s.startBoth()
	s.say("One event is published.")
	ids := harness.IDs("produce-", 0, n)
	s.publish(ids[0])
	for _, role := range roles {
		s.waitCounted(role, 1)
	}
	s.say("Both have processed it. And %d more, at 30 a second.", n-1)
	s.publishAt(30, ids[1:])
	s.expectBoth("", n, 0)
}

// recovery stops notify for a while.
func recovery(s *script) {
	const n, missed = 60, 40
	s.start("orders")
	notify := s.start("notify")
	ids := harness.IDs("recovery-", 0, n)
	s.say("Both run, and get %d events.", n-missed)
	s.publishAt(40, ids[missed:])
	s.waitCounted("notify", n-missed)

	s.say("notify is stopped. %d more events.", missed)
	s.stop(notify)
	s.publishAt(20, ids[:missed])
	s.expectCounted("orders", ", notify stopped", n, 0)
	s.expectCounted("notify", ", while stopped", n-missed, 0)
	queued := s.ready("notify-queue")
	s.expect("queued for notify", queued, missed)

	s.say("%d events wait for notify. It is started again.", queued)
	s.start("notify")
	s.expectCounted("notify", ", after restart", n, 0)
}

// idempotency publishes duplicates, without etcd and with it.
func idempotency(s *script) {
	const n = 10
	s.startBoth()
	s.say("No etcd. The same event, %d times.", n)
	s.publishAt(10, slices.Repeat(harness.IDs("plain-", 0, 1), n))
	s.expectBoth(", no etcd", n, 0)

	s.say("Processed %d times. Both are started again, with ENABLE_ETCD=true.", n)
	s.stop(s.services...)
	s.startBoth("ENABLE_ETCD=true")
	s.status.countFromHere()
	s.say("Another event, %d times.", n)
	same := slices.Repeat(harness.IDs("etcd-", 0, 1), n)
	s.publishAt(10, same)
	s.expectBoth(", with etcd", 1, n-1)

	s.say("Processed once, skipped %d times. Both are restarted, and it comes again.", n-1)
	s.stop(s.services...)
	s.startBoth("ENABLE_ETCD=true")
	s.status.countFromHere()
	s.publishAt(10, same)
	s.expectBoth(", restarted", 0, n)
	s.say("Skipped at once: each has read the recorded ids from etcd at its start.")
}
