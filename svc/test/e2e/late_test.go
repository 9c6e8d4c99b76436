package e2e

import (
	"testing"
	"time"
)

// The service waits for an etcd and a broker that are unreachable at its start. It logs each of
// these once, and each attempt to connect to the broker at level debug. It goes on soon after
// they are reachable, and uses little CPU until then.
func TestLateServers(t *testing.T) {
	b := newProxiedEnv(t)
	b.publishBodies(orders("late", 3)...)
	b.toEtcd.cut()
	s := b.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=debug")
	s.waitLog("level=WARN", "etcd is unreachable")
	cpu := s.cpu()
	<-time.After(3 * time.Second)
	if used := s.cpu() - cpu; used > 300*time.Millisecond {
		t.Errorf("%v of CPU in 3 s of waiting", used)
	}
	s.wantLines(0, "msg=consuming")
	b.toRabbit.cut()
	b.toEtcd.reconnect()
	back := time.Now()
	s.waitLog("level=WARN", "not consuming", "connection refused", "retry_in=", "host and port in AMQP_URL")
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("the service goes on only %v after etcd became reachable", took)
	}
	s.waitLogs(3, "level=DEBUG", "connecting again", "connection refused", "retry_in=")
	tries := s.log.count("connecting again")
	b.toRabbit.reconnect()
	back = time.Now()
	s.waitLog("msg=consuming")
	if took := time.Since(back); took > 5*time.Second { // the longest pause is 4.5 s: 3 s and a jitter of up to half of it
		t.Errorf("the service consumes only %v after the broker became reachable", took)
	}
	s.waitLogs(3, "msg=processed")
	if n := s.log.count("connecting again"); n > tries+1 {
		t.Errorf("%d failed tries, %d of them before the broker became reachable", n, tries)
	}
	s.wantLines(2, "level=WARN")
	s.wantLines(1, "etcd is reachable again")
	s.stop()
}
