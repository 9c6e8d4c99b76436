package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The service waits, from its start, for the end of a refusal that passes by itself or when its
// cause is removed. (Package rabbit lists such refusals.) The log names the virtual host, the
// broker's reason and a hint.
func TestRefusedForAWhile(t *testing.T) {
	e, vhost := newBroker(t)
	// RabbitMQ 4 starts virtual hosts that are down again, every 30 s, unless it is told not to.
	ctl(t, "eval", fmt.Sprintf(`application:set_env(rabbit, vhost_process_reconciliation_enabled, false), rabbit_vhost_sup_sup:stop_and_delete_vhost(<<%q>>).`, vhost))
	s := e.start("orders", "LOG_LEVEL=debug")
	// A refusal for good would have ended the process after 5 in a row.
	s.waitLog("not consuming", fmt.Sprintf(`virtual host \"%s\"`, vhost), "is down", "retry_in=", "hint=", "rabbitmqctl restart_vhost")
	s.waitLogs(7, "connecting again", "is down")
	s.alive()
	ctl(t, "restart_vhost", "--vhost", vhost)
	s.waitLog("msg=consuming")
	e.publishBodies(orders("r", 1)...)
	s.waitLog("msg=processed", "id=r0")
	s.stop()
}

// A slow login is not an error: the broker may look users up in a remote directory. The
// connection for dead letters has its own login.
func TestSlowLogin(t *testing.T) {
	e, _ := newBroker(t)
	newRelay(e, 7*time.Second)
	s := e.start("orders")
	s.waitLog("msg=consuming")
	e.publishBodies("poison")
	s.waitLog("msg=dead-lettered")
	s.stop()
	s.wantLines(0, "level=WARN")
}

// A login that never ends is given up, logged, and retried.
func TestLoginWithoutEnd(t *testing.T) {
	e, vhost := newBroker(t)
	e.amqpURL = strings.Replace(e.amqpURL, "guest:guest", "guest:wrong", 1) // a refusal would end the process
	newRelay(e, time.Hour)
	s := e.start("orders")
	s.waitLog("not consuming", fmt.Sprintf(`virtual host \"%s\"`, vhost), "retry_in=", "did not finish the login within 15s", "authentication backend")
	s.alive()
	s.stop()
}

// A service that has consumed does not exit when its queue is replaced by one of another
// type. It consumes again once that queue is deleted.
func TestOtherTypeLater(t *testing.T) {
	e, _ := newBroker(t)
	way := e.proxyBroker()
	s := e.start("orders", "LOG_LEVEL=debug", "QUEUE_TYPE=classic")
	s.waitLog("msg=consuming")
	way.cut()
	e.replaceQueue(quorum)
	way.reconnect()
	s.waitLog("not consuming", "queue orders-queue has another type", "hint=", "QUEUE_TYPE")
	s.waitLogs(3, "connecting again", "queue orders-queue has another type")
	s.alive()
	e.deleteQueue("orders-queue")
	s.waitLogs(2, "msg=consuming")
	s.stop()
}

// A connection for dead letters that the broker refuses is an outage of the dead queue,
// logged once, and not a refusal of each message.
func TestDeadLettersWithoutConnection(t *testing.T) {
	e, vhost := newBroker(t)
	e.publishBodies("poison", "poison", "poison")
	ctl(t, "set_vhost_limits", "--vhost", vhost, `{"max-connections":1}`)
	s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0")
	s.waitLog("nothing can be published", "connection limit (1) is reached", "hint=", "raise the limit")
	s.waitReady("dead_letters")
	ctl(t, "clear_vhost_limits", "--vhost", vhost)
	s.waitLogs(3, "msg=dead-lettered")
	s.waitReady()
	s.stop()
	s.wantLines(1, "level=WARN")
}
