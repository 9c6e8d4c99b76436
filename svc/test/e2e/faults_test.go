package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// Queues that are deleted while the service uses them are declared again. No later event or dead
// letter is lost.
func TestQueuesDeleted(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.deleteQueue("orders-queue")
	s.waitLog("not consuming", "cancelled the consumer", "deleted", "consumer_timeout")
	s.waitLogs(2, "msg=consuming")
	e.publishBodies(append(orders("q", 1), "poison 0")...)
	s.waitLog("msg=processed", "id=q0")
	s.waitLog("msg=dead-lettered")
	e.deleteQueue("orders-queue.dead")
	e.publishBodies("poison 1", "poison 2")
	s.waitLogs(3, "msg=dead-lettered")
	s.stop()
	bodies := make(map[string]bool)
	for _, l := range e.deadLetters("orders") {
		bodies[string(l.Body)] = true
	}
	if !bodies["poison 1"] || !bodies["poison 2"] || len(bodies) != 2 {
		t.Errorf("dead letters are %v", bodies)
	}
}

// Under an alarm the broker stops reading from connections that publish. Waiting dead
// letters must not delay the acknowledgements of good events.
func TestAlarm(t *testing.T) {
	e := newEnv(t)
	began, hold := make(chan post, 100), make(chan struct{})
	receiver := newReceiver(t, func(p post) int { began <- p; <-hold; return http.StatusOK })
	s := e.start("orders", "WEBHOOK_URL="+receiver.URL, "CONCURRENCY=2", "PREFETCH=4")
	s.waitLog("msg=consuming")
	e.publishBodies("poison 0") // makes the dead letters' connection one that publishes
	s.waitLog("msg=dead-lettered")
	e.publishBodies(slices.Concat(orders("a", 50), []string{"poison 1", "poison 2"}, orders("b", 50))...)
	<-began
	endAlarm := alarm(t)
	close(hold)
	s.waitLogs(100, "msg=processed")    // two of four deliveries wait, so these are acknowledged
	s.wantLines(1, "msg=dead-lettered") // that of before the alarm
	endAlarm()
	s.waitLogs(3, "msg=dead-lettered")
	s.stop()
	e.wantStored("poison 0", "poison 1", "poison 2")
}

// While etcd is unreachable, no event is processed without a claim and the replicas use
// little CPU. The work continues as soon as etcd is reachable again.
func TestEtcdFaults(t *testing.T) {
	w := newFaultEnv(t)
	w.publishSteadily()
	ctx := t.Context()
	faults := []struct {
		name       string
		begin, end func()
		lasts      time.Duration
	}{
		{"killed", func() { w.must(w.etcdServer.Kill()) }, func() { w.must(w.etcdServer.Start(ctx)) }, 2 * time.Second},
		{"stopped", func() { w.must(w.etcdServer.Stop(ctx)) }, func() { w.must(w.etcdServer.Start(ctx)) }, 2 * time.Second},
		{"frozen", func() { w.must(w.etcdServer.Pause()) }, func() { w.must(w.etcdServer.Resume()) }, 2 * time.Second},
		{"cut off", w.toEtcd.cut, w.toEtcd.reconnect, 2 * time.Second},
		{"frozen for longer than CLAIM_TTL", func() { w.must(w.etcdServer.Pause()) }, func() { w.must(w.etcdServer.Resume()) }, 6 * time.Second},
		{"packets lost for longer than CLAIM_TTL", w.toEtcd.blackhole, w.toEtcd.restore, 6 * time.Second},
	}
	const within = 2 * time.Second // the work goes on
	// At any time a renewed session lasts for at least this long.
	const leastLeft = 4 * time.Second * 2 / 3
	for _, f := range faults {
		w.healthy()
		began := time.Now()
		f.begin()
		quiet := time.After(f.lasts)
		<-time.After(500 * time.Millisecond) // until work under granted claims has finished
		posts, cpu := len(w.receiver.all()), w.replicas[0].cpu()+w.replicas[1].cpu()
		<-quiet
		if n := len(w.receiver.all()) - posts; n > 0 {
			t.Errorf("%s: %d posts while etcd was unreachable", f.name, n)
		}
		if used := w.replicas[0].cpu() + w.replicas[1].cpu() - cpu; used > time.Second/2 {
			t.Errorf("%s: %v of CPU while waiting", f.name, used)
		}
		f.end()
		back := time.Now()
		w.progress(10)
		took := time.Since(back)
		if took > within {
			t.Errorf("%s: the work continued only after %v", f.name, took)
		}
		if back.Sub(began) > leastLeft {
			w.allow(f.name, began, back.Add(within), 4*100) // what two replicas hold, and its copies
		}
		t.Logf("survived: %s; work went on after %v", f.name, took.Round(time.Millisecond))
	}
	w.finish()
	// Each outage is logged once at its beginning and once at its end, not once per
	// message. Calls that begin during an outage shorter than their first deadline just
	// wait, so such an outage is logged only if it breaks a call.
	w.wantLog(2, 2*len(faults), "etcd is unreachable")
	w.wantLog(2, 2*len(faults), "etcd is reachable again")
}

// Compaction and defragmentation of etcd under load, and an etcd that answers after seconds, end
// no session with the default CLAIM_TTL, and lose nothing.
func TestBusyEtcd(t *testing.T) {
	w := newFaultEnv(t, "CLAIM_TTL=10s")
	w.publishSteadily()
	ctx := deadline(t)
	for range 10 {
		w.progress(100)
		w.compact(ctx, w.etcdServer.Endpoint())
	}
	w.progress(100)
	w.toEtcd.delay(2500)
	w.progress(60)
	w.toEtcd.restore()
	w.finish()
	w.wantLog(0, 0, "session lost")
	w.wantLog(0, 0, "etcd is unreachable")
}

// compact compacts and defragments etcd, and returns its status after that.
func (e *env) compact(ctx context.Context, endpoint string) *clientv3.StatusResponse {
	e.t.Helper()
	_, err := e.etcd.Compact(ctx, e.revision(), clientv3.WithCompactPhysical())
	e.must(err)
	_, err = e.etcd.Defragment(ctx, endpoint)
	e.must(err)
	status, err := e.etcd.Status(ctx, endpoint)
	e.must(err)
	return status
}

// Reconnects leak no file descriptors. (The tests of the packages check for leaked
// goroutines.)
func TestReconnectsLeakNothing(t *testing.T) {
	const reconnects = 50
	e := newProxiedEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLog("msg=dead-lettered")
	descriptors := func() int {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		e.must(err)
		return len(files)
	}
	before := descriptors()
	for i := range reconnects {
		e.toRabbit.cut()
		e.toRabbit.reconnect()
		s.waitLogs(i+2, "msg=consuming")
		// A delivery resets the backoff.
		e.publishBodies(fmt.Sprintf(`{"type":"new_order","id":"%d"}`, i))
		s.waitLogs(i+1, "msg=processed")
	}
	e.publishBodies("poison")
	s.waitLogs(2, "msg=dead-lettered")
	if after := descriptors(); after > before+2 {
		t.Errorf("%d files were open before the reconnects, %d after them", before, after)
	}
	s.stop()
}
