package e2e

import (
	"net/http"
	"syscall"
	"testing"
	"time"
)

// A handler that does not finish is cancelled in time for a clean exit. Its claim is
// released, so the next process handles its event at once.
func TestStopWithHangingHandler(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver, began := newHang(t)
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT="+shutdown.String())
	e.publishBodies(orders("h", 3)...)
	for range 3 {
		<-began
	}
	took := s.stopWithin(syscall.SIGTERM, shutdown)
	s.waitLog("handlers are cancelled", "handlers=3", "SHUTDOWN_TIMEOUT above HANDLER_TIMEOUT + 4s, here 34s")
	if took < shutdown/2 {
		t.Errorf("stopped after %v: the handlers had no time to finish", took)
	}
	e.wantAllDone("orders", 0) // and no id is claimed
	next := e.start("orders", "ENABLE_ETCD=true", "CLAIM_TTL=60s")
	next.waitLogs(3, "msg=processed")
	e.wantStored()
	next.stop()
}

// A second signal ends the process at once.
func TestSecondSignal(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver, began := newHang(t)
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "SHUTDOWN_TIMEOUT=50s")
	e.publishBodies(orders("2nd", 1)...)
	<-began
	s.signal(syscall.SIGINT)
	s.waitLog("msg=stopping", "within=50s", "a second signal ends the service at once")
	s.alive()
	asked := time.Now()
	s.signal(syscall.SIGINT)
	<-s.exited
	took := time.Since(asked)
	if status := s.cmd.ProcessState.Sys().(syscall.WaitStatus); took > time.Second || !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("the process ended after %v: %v", took, s.cmd.ProcessState)
	}
}

// newHang returns a receiver that answers no post until the end of the test. began
// receives every post.
func newHang(t *testing.T) (receiver *receiver, began chan post) {
	release, began := make(chan struct{}), make(chan post, 1000)
	receiver = newReceiver(t, func(p post) int {
		began <- p
		<-release
		return http.StatusTeapot
	})
	t.Cleanup(func() { close(release) })
	return receiver, began
}
