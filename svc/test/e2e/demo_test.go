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
