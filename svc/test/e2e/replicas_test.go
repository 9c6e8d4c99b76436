package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Replicas crash eight times under load, with two copies of each event. Work is done
// twice only if its process died during the work or before the record was committed.
func TestCrashes(t *testing.T) {
	const ids, copies, crashes = 8000, 2, 8
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, func(post) int {
		<-time.After(5 * time.Millisecond) // so that there is work until the last crash
		return http.StatusOK
	})
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, "CLAIM_TTL=2s", "PREFETCH=200"}
	start := func() *service { return e.start("orders", vars...) }
	e.publishBodies(slices.Repeat(orders("c", ids), copies)...)
	replicas := []*service{start(), start()}
	var killed int // the last process
	for crash := range crashes {
		goal := (crash + 1) * ids / (crashes + 2)
		receiver.wait(t, fmt.Sprintf("%d posts", goal), func(posts []post) bool { return len(posts) >= goal })
		victim := crash % len(replicas)
		killed = replicas[victim].cmd.Process.Pid
		replicas[victim].kill()
		replicas[victim] = start()
	}
	keys := e.keys("orders")
	if !slices.ContainsFunc(keys.claims, func(c batch) bool {
		return strings.Contains(string(keys.sessions[c.session].Value), fmt.Sprintf(`"pid":%d,`, killed))
	}) {
		t.Error("the last process that was killed has left no claim")
	}
	eventually(t, "an empty queue and no claim", func() error { return e.allDone("orders", ids) })
	for _, s := range replicas {
		s.alive()
		s.stop()
	}
	lost, twice := receiver.accounts("c", ids)
	if lost != 0 {
		t.Errorf("%d of %d ids were lost", lost, ids)
	}
	// Each crash may repeat the running work (CONCURRENCY) and the work that waited for
	// its commit.
	if most := crashes * (32 + 240); twice > most {
		t.Errorf("%d ids were done twice, at most %d are allowed", twice, most)
	}
	t.Logf("%d ids, %d crashes: %d done twice, %d lost", ids, crashes, twice, lost)
	e.wantAllDone("orders", ids)
}
