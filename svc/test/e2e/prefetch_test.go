package e2e

import (
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Before the service knows how long its handlers take, it holds two deliveries for each.
func TestHeldDeliveries(t *testing.T) {
	t.Parallel()
	const events = 100
	tests := map[string]struct {
		vars []string
		held int
	}{
		"by default":     {nil, 64},
		"few handlers":   {[]string{"CONCURRENCY=4"}, 8},
		"one handler":    {[]string{"CONCURRENCY=1"}, 2},
		"small PREFETCH": {[]string{"PREFETCH=10"}, 10},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := newBroker(t)
			e.publishBodies(orders("h", events)...)
			receiver, began := newHang(t)
			s := e.start("orders", append(tt.vars, "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT="+shutdown.String())...)
			<-began
			e.waitDepth("orders-queue", events-tt.held)
			s.stop()
		})
	}
}

// The service holds PREFETCH deliveries while its handlers are fast, and few again when they
// become slow. Each event is done once, on either type of queue.
func TestHeldFollowsTheHandlers(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			const each, slowWork = 400, 3 * time.Second
			e, _ := newBroker(t)
			e.deleteQueue("orders-queue")
			var slow atomic.Bool
			receiver := newReceiver(t, func(p post) int {
				if slow.Load() {
					<-time.After(slowWork)
				}
				return http.StatusOK
			})
			s := e.start("orders", "WEBHOOK_URL="+receiver.URL, "LOG_LEVEL=debug", "PREFETCH=200", "QUEUE_TYPE="+kind)
			s.waitLog("holding deliveries", "level=64")
			s.waitLog("msg=consuming")
			e.publishBodies(orders("fast", each)...)
			s.waitLog("holding deliveries", "level=200")
			s.waitLogs(each, "msg=processed")
			slow.Store(true)
			e.publishBodies(orders("slow", each)...)
			s.waitLogs(2, "holding deliveries", "level=64")
			if n := s.log.count("msg=processed"); n >= 2*each-64 {
				t.Errorf("few are held only after %d events", n)
			}
			slow.Store(false)
			s.waitLogs(2*each, "msg=processed") // more are held only when these are finished
			e.publishBodies(orders("again", each)...)
			s.waitLogs(2, "holding deliveries", "level=200")
			s.waitLogs(3*each, "msg=processed")
			s.stop()
			e.waitDepth("orders-queue", 0)
			if done, posts := len(receiver.Work("orders")), len(receiver.all()); done != 3*each || posts != 3*each {
				t.Errorf("%d events were done, in %d posts, want %d", done, posts, 3*each)
			}
			s.wantLines(0, "level=WARN")
		})
	}
}

// Nothing that was done before a stop comes back, on either type of queue: without etcd it would
// be done again.
func TestStopAcknowledges(t *testing.T) {
	t.Parallel()
	const events = 10_000
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			e, _ := newBroker(t)
			e.deleteQueue("orders-queue")
			s := e.start("orders", "QUEUE_TYPE="+kind)
			s.waitLog("msg=consuming")
			s.signal(syscall.SIGSTOP) // so that events wait
			e.publishBodies(orders("a", events)...)
			s.signal(syscall.SIGCONT)
			s.waitLogs(events/2, "msg=processed")
			s.stop()
			e.waitDepth("orders-queue", events-s.log.count("msg=processed"))
		})
	}
}

// A replica that starts later gets its share at once, although all events were there before
// and the work is slow.
func TestSecondReplicaGetsItsShare(t *testing.T) {
	const events = 1000
	e, _ := newBroker(t)
	receiver := newReceiver(t, func(post) int { <-time.After(time.Second); return http.StatusOK })
	e.publishBodies(orders("s", events)...)
	first := e.start("orders", "WEBHOOK_URL="+receiver.URL)
	first.waitLogs(33, "msg=processed")
	second := e.start("orders", "WEBHOOK_URL="+receiver.URL)
	second.waitLog("msg=consuming")
	before := first.log.count("msg=processed")
	second.waitLogs(32, "msg=processed")
	if n := first.log.count("msg=processed") - before; n > 5*32 {
		t.Errorf("the first replica has done %d events until the second has done 32", n)
	}
	first.stop()
	second.stop()
}
