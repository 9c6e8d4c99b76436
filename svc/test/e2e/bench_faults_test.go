package e2e

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// BenchmarkReplicaKilled kills a replica that works on events, and measures when another
// replica begins to work on the last of them: the time since the end of the lease in
// etcd, and the time since the kill.
func BenchmarkReplicaKilled(b *testing.B) {
	const ids, ttl = 20, 2 * time.Second
	m := newMeasurement(b)
	var killed atomic.Bool
	release := make(chan struct{})
	defer close(release)
	posted := make(chan string, ids)
	receiver := newReceiver(b, func(p post) int {
		if killed.Load() {
			return http.StatusOK
		}
		posted <- p.ID
		<-release
		return http.StatusTeapot
	})
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, fmt.Sprint("CLAIM_TTL=", ttl)}
	for range *benchRounds {
		killed.Store(false)
		before := len(receiver.all())
		owner := m.start("orders", vars...)
		owner.waitLog("msg=consuming")
		bodies := m.fresh(ids)
		m.publishBodies(bodies...)
		for range ids {
			<-posted
		}
		session := m.session()
		heir := m.start("orders", vars...)
		heir.waitLog("msg=consuming")

		killed.Store(true)
		kill := time.Now()
		ended := m.kill(owner, session)
		var last time.Time
		receiver.wait(b, "the dead replica's events", func(posts []post) bool {
			done := 0
			for _, p := range posts[before:] {
				if p.Status == http.StatusOK {
					done++
					last = p.Began
				}
			}
			return done == ids
		})
		m.add("ms-after-the-lease", max(0, last.Sub(ended).Seconds()*1e3))
		m.add("ms-after-the-kill", last.Sub(kill).Seconds()*1e3)
		heir.waitLogs(ids, "msg=processed")
		heir.stop()
	}
	m.report("")
}

// BenchmarkEtcdLeaderKilled kills the leader of three etcd members under a steady load.
// It measures when the first new event is done, and when each of two replicas has done
// twenty.
func BenchmarkEtcdLeaderKilled(b *testing.B) {
	members := startEtcdMembers(b, 3, stack.EtcdOptions{})
	w := newFaultEnvOn(b, members, nil)
	m := &measurement{env: w.env, b: b, values: make(map[string][]float64)}
	w.publishSteadily()
	for range *benchRounds {
		w.healthy()
		leader := w.etcdLeader()
		killed := time.Now()
		m.must(leader.Kill())
		took, silence := w.goneOn(killed)
		w.healthy()
		m.add("ms-until-both-work", time.Since(killed).Seconds()*1e3)
		m.add("ms-until-done", took.Seconds()*1e3)
		m.add("ms-silence", silence.Seconds()*1e3)
		m.must(leader.Start(deadline(b)))
		w.healthy()
		w.etcdLeader() // waits until all three members follow one leader
	}
	w.finish()
	m.report("")
}
