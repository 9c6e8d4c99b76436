package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/streadway/amqp"
)

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A queue that is deleted while the service consumes from it is declared again.
func TestQueueDeleted(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.channel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete("orders-queue", false, false, false)
		return err
	})
	s.waitLog("not consuming", "cancelled the consumer", "deleted", "consumer_timeout")
	s.waitLogs(2, "msg=consuming")
	e.publishBodies(orders("q", 1)...)
	s.waitLog("msg=processed", "id=q0")
	s.stop()
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
	s.waitLogs(100, "msg=processed") // two of four deliveries wait, so these are acknowledged
	if n := s.log.count("msg=dead-lettered"); n != 1 {
		t.Errorf("%d dead letters under the alarm, want that of before", n)
	}
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
		name          string
		begin, end    func()
		within        time.Duration
		longerThanTTL bool
	}{
		{"killed", func() { w.must(w.etcdServer.Kill()) }, func() { w.must(w.etcdServer.Start(ctx)) }, 2 * time.Second, false},
		{"stopped", func() { w.must(w.etcdServer.Stop(ctx)) }, func() { w.must(w.etcdServer.Start(ctx)) }, 2 * time.Second, false},
		{"frozen", func() { w.must(w.etcdServer.Pause()) }, func() { w.must(w.etcdServer.Resume()) }, 2 * time.Second, false},
		{"cut off", w.toEtcd.cut, w.toEtcd.reconnect, 2 * time.Second, false},
		{"frozen for longer than CLAIM_TTL", func() { w.must(w.etcdServer.Pause()) }, func() { w.must(w.etcdServer.Resume()) }, 2 * time.Second, true},
		{"packets lost for longer than CLAIM_TTL", w.toEtcd.blackhole, w.toEtcd.restore, 2 * time.Second, true},
	}
	// At any time a renewed session lasts for at least this long.
	const leastLeft = 4 * time.Second * 2 / 3
	for _, f := range faults {
		w.healthy()
		began := time.Now()
		f.begin()
		quiet := time.After(2 * time.Second)
		if f.longerThanTTL {
			quiet = time.After(6 * time.Second)
		}
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
		if took > f.within {
			t.Errorf("%s: the work continued only after %v", f.name, took)
		}
		if back.Sub(began) > leastLeft {
			w.long = append(w.long, span{began, back.Add(f.within)})
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

// An etcd that answers after seconds is slow but not unreachable: with the default
// CLAIM_TTL no session is lost.
func TestSlowEtcd(t *testing.T) {
	w := newFaultEnv(t, "CLAIM_TTL=10s")
	w.publishSteadily()
	w.progress(50)
	w.toEtcd.delay(2500)
	w.progress(60)
	w.toEtcd.restore()
	w.finish()
	w.wantLog(0, 0, "session lost")
	w.wantLog(0, 0, "etcd is unreachable")
}

// A dead queue that was deleted is declared again, and no dead letter is lost.
func TestDeadQueueDeleted(t *testing.T) {
	e := newEnv(t)
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.publishBodies("poison 0")
	s.waitLog("msg=dead-lettered")
	e.channel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete("orders-queue.dead", false, false, false)
		return err
	})
	e.publishBodies("poison 1", "poison 2")
	s.waitLogs(3, "msg=dead-lettered")
	s.stop()
	bodies := make(map[string]int)
	for _, l := range e.deadLetters("orders") {
		bodies[string(l.Body)]++
	}
	if bodies["poison 1"] == 0 || bodies["poison 2"] == 0 || len(bodies) != 2 {
		t.Errorf("dead letters are %v", bodies)
	}
}

// Reconnects leak no file descriptors. (The tests of the packages check for leaked
// goroutines.)
func TestReconnectsLeakNothing(t *testing.T) {
	const reconnects = 50
	e := newProxiedEnv(t)
	p := e.toRabbit
	s := e.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	e.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLog("msg=dead-lettered")
	before := s.descriptors()
	for i := range reconnects {
		p.cut()
		p.reconnect()
		s.waitLogs(i+2, "msg=consuming")
		// A delivery resets the backoff.
		e.publishBodies(fmt.Sprintf(`{"type":"new_order","id":"%d"}`, i))
		s.waitLogs(i+1, "msg=processed")
	}
	e.publishBodies("poison")
	s.waitLogs(2, "msg=dead-lettered")
	if after := s.descriptors(); after > before+2 {
		t.Errorf("%d files were open before the reconnects, %d after them", before, after)
	}
	s.stop()
}
