package e2e

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
)

// The command lines of the README work exactly as they are written.
func TestGoRun(t *testing.T) {
	e := newEnv(t)
	e.topology("orders", "notify")
	for i, lines := range [][]string{
		{`cd svc && SERVICE_NAME=order go run *.go`, `cd svc && SERVICE_NAME=notify go run *.go`},
		{`cd svc && ENABLE_ETCD=true SERVICE_NAME=orders go run *.go`, `cd svc && ENABLE_ETCD=true SERVICE_NAME=notify go run *.go`},
	} {
		id := fmt.Sprint("run", i)
		e.publishBodies(`{"type":"new_order","id":"` + id + `"}`)
		var running []*service
		for _, line := range lines {
			cmd := exec.Command("sh", "-c", line)
			cmd.Dir = "../../.."
			cmd.Env = append(cmd.Environ(), e.vars()...)
			running = append(running, startCommand(t, line, cmd))
		}
		for _, s := range running {
			s.waitLog("msg=consuming")
			s.waitLog("msg=processed", "id="+id)
			s.signal(syscall.SIGINT) // to the whole process group, as ctrl-c does
			s.waitLog("msg=stopped")
			<-s.exited
		}
	}
	e.waitCounts(map[string]int64{"orders_new_order_ok": 2, "notify_new_order_ok": 2})
}

// Messages that are not events of the role are acknowledged or dead-lettered, and do not
// delay its events.
func TestOtherMessages(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.publishBodies(
		`{"type":"order_shipped","id":"1"}`, `{"type":"order_shipped"}`, // types without a handler
		`{"type":"new_order"}`, // has no id
		`{"type":"new_order","id":"126"}`,
	)
	e.waitCounts(map[string]int64{"orders_malformed": 1, "orders_ignored": 2, "orders_new_order_ok": 1})
	s.waitLog("msg=ignored", "type=order_shipped", "id=1")
	s.waitLog("msg=dead-lettered", "reason=malformed", "missing")
	s.stop()
	l := e.wantStored(`{"type":"new_order"}`)[`{"type":"new_order"}`]
	if l.Headers["x-reason"] != "malformed" || l.Headers["x-exchange"] != "events" || l.Headers["x-routing-key"] != "foo" ||
		l.Headers["x-attempts"] != int32(0) || l.Headers["x-error"] == "" || l.Headers["x-failed-at"] == "" {
		t.Errorf("headers are %v", l.Headers)
	}
	if n := e.depth("orders-queue"); n != 0 {
		t.Errorf("%d messages are left in the queue", n)
	}
}

// The service exits with a hint when the broker keeps refusing the login.
func TestCannotGoOn(t *testing.T) {
	e, _ := newBroker(t)
	e.amqpURL = shared.rabbit.URL() + "nowhere"
	s := e.start("orders")
	s.wantExit(1)
	s.waitLog("level=ERROR", "refused 5 times in a row", "AMQP_URL")
}
