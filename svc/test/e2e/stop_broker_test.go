package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// alarm raises the memory alarm of the whole shared broker, until end or the end of the
// test. The test must not be parallel.
func alarm(t *testing.T) (end func()) {
	t.Helper()
	end = sync.OnceFunc(func() { ctl(t, "set_vm_memory_high_watermark", "0.6") })
	t.Cleanup(end)
	ctl(t, "set_vm_memory_high_watermark", "absolute", "1")
	return end
}

// While a large dead letter waits because the broker has stopped reading, the library can
// send no heartbeats, and gives up the connection. The dead letter is sent again over new
// connections until the broker reads. All the while the service is not ready, and the log
// does not say that messages can be published. The dead letter is stored once. A stop
// meanwhile is in time.
func TestAlarmOutlastsConnection(t *testing.T) {
	e := newBrokerEnv(t, newVhost(t), "orders")
	e.amqpURL = e.directAMQP + "?heartbeat=1"
	relay := newRelay(e, 0)
	large := "poison" + strings.Repeat(" ", 32<<20)
	e.publishBodies(large)
	endAlarm := alarm(t)
	stopped := e.start("orders", "AMQP_URL="+e.directAMQP, "SHUTDOWN_TIMEOUT="+shutdown.String(), "HEALTH_ADDR=127.0.0.1:0")
	stopped.waitLog("nothing can be published", "the broker takes no messages")
	stopped.waitReady("dead_letters")
	<-time.After(time.Second) // until the socket's buffer is full
	t.Log("stopped in", stopped.stopWithin(syscall.SIGTERM, shutdown).Round(time.Millisecond))
	e.waitDepth("orders-queue", 1)

	s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0")
	s.waitLog("nothing can be published", "the broker takes no messages")
	eventually(t, "two more connections for dead letters", func() error {
		if relay.accepted.Load() < 4 {
			return errNotYet
		}
		return nil
	})
	s.waitReady("dead_letters")
	s.wantLines(0, "can be published again")
	endAlarm()
	s.waitLog("messages can be published again")
	s.waitLog("msg=dead-lettered")
	s.waitReady()
	s.stop()
	e.wantStored(large)
}

// The broker's answer to basic.cancel may arrive late, behind a full prefetch of
// deliveries. The connection stays open until the handlers have finished and their work
// is acknowledged.
func TestStopBehindFullPrefetch(t *testing.T) {
	const events, concurrency = 1000, 4
	e, _ := newBroker(t)
	var bodies []string
	for i := range events {
		bodies = append(bodies, fmt.Sprintf(`{"type":"new_order","id":"%d","pad":"%s"}`, i, strings.Repeat("x", 10_000)))
	}
	e.publishBodies(bodies...)
	way := e.proxyBroker()
	way.toxic(`{"name":"narrow","type":"bandwidth","stream":"downstream","attributes":{"rate":100}}`)

	began, finish := make(chan post, events), make(chan struct{})
	receiver := newReceiver(t, func(p post) int { began <- p; <-finish; return http.StatusOK })
	s := e.start("orders", "WEBHOOK_URL="+receiver.URL, fmt.Sprint("CONCURRENCY=", concurrency), "SHUTDOWN_TIMEOUT="+shutdown.String())
	for range concurrency {
		<-began
	}
	// The handlers finish after any timeout of a close has passed.
	time.AfterFunc(shutdown/3, func() { close(finish) })
	t.Log("stopped in", s.stopWithin(syscall.SIGTERM, shutdown).Round(time.Millisecond))
	if n := len(receiver.all()); n != concurrency {
		t.Errorf("%d events were done, want %d", n, concurrency)
	}
	e.waitDepth("orders-queue", events-concurrency)
}

// An error that ends the process is logged first, and ends it even while etcd is
// unreachable.
func TestCannotGoOnWithoutEtcd(t *testing.T) {
	b := newProxiedEnv(t)
	b.toRabbit.cut()
	s := b.start("orders", "ENABLE_ETCD=true", "QUEUE_TYPE=classic", "SHUTDOWN_TIMEOUT="+shutdown.String())
	s.waitLog("not consuming")
	b.toEtcd.cut()
	b.replaceQueue(quorum)
	b.toRabbit.reconnect()
	s.waitLog("level=ERROR", "cannot go on", "queue orders-queue has another type", "hint=", "QUEUE_TYPE")
	logged := time.Now()
	s.wantExit(1)
	if took := time.Since(logged); took > shutdown {
		t.Errorf("the process ended %v after it had logged the error", took)
	}
}
