package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A hundred replicas wait for the ids of a replica that is killed: four processes, and
// behind them 96 sessions that only hold claims. As soon as the owner's lease has ended,
// the next replica works on each id once.
func TestManyWait(t *testing.T) {
	const ids, processes, sessions, ttl = 20, 4, 96, 2 * time.Second
	e := newProxiedEnv(t)
	ctx := deadline(t)
	var killed atomic.Bool
	release := make(chan struct{})
	posted := make(chan string, 10*ids)
	receiver := newReceiver(t, func(p post) int {
		if killed.Load() {
			return http.StatusOK
		}
		posted <- p.ID
		<-release
		return http.StatusTeapot
	})
	t.Cleanup(func() { close(release) })
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, fmt.Sprint("CLAIM_TTL=", ttl)}
	owner := e.start("orders", append(vars, fmt.Sprint("PREFETCH=", ids))...)
	owner.waitLog("msg=consuming")
	e.publishBodies(orders("m", ids)...)
	for range ids {
		<-posted
	}
	session := slices.Collect(maps.Keys(e.keys("orders").sessions))[0]
	for range processes {
		e.start("orders", vars...).waitLog("msg=consuming")
	}
	for range processes {
		e.publishBodies(orders("m", ids)...)
	}
	eventually(t, "others wait for every id", func() error {
		claims := make(map[string]int)
		for _, c := range e.keys("orders").claims {
			for _, id := range c.ids {
				claims[id]++
			}
		}
		for i := range ids {
			if claims[fmt.Sprint("m", i)] < 2 {
				return fmt.Errorf("claims by id: %v", claims)
			}
		}
		return nil
	})
	lease, err := e.etcd.Grant(ctx, 120)
	e.must(err)
	waiting, bound := string(listIDs(idsOf("m", ids))), clientv3.WithLease(lease.ID)
	for i := range sessions {
		_, err := e.etcd.Txn(ctx).Then(
			clientv3.OpPut(fmt.Sprintf("/service/orders/session/%016x", i), "a test", bound),
			clientv3.OpPut(fmt.Sprintf("/service/orders/claim/%016x/0000000000000001", i), waiting, bound),
		).Commit()
		e.must(err)
	}
	ends := e.etcd.Watch(ctx, "/service/orders/session/"+session)

	killed.Store(true)
	kill := time.Now()
	owner.kill()
	if end := <-ends; len(end.Events) != 1 || end.Events[0].Type != clientv3.EventTypeDelete {
		t.Fatalf("the owner's session has not ended: %v", end)
	}
	ended := time.Now()
	e.waitCounts(map[string]int64{"orders_new_order_ok": ids, "orders_new_order_skipped": processes * ids})
	slowest := time.Duration(0)
	soonest := time.Hour
	done := 0
	for _, p := range receiver.all() {
		if p.Status == http.StatusOK {
			done++
			slowest = max(slowest, p.Began.Sub(ended))
			soonest = min(soonest, p.Began.Sub(kill))
		}
	}
	if lost, twice := receiver.accounts("m", ids); done != ids || lost > 0 || twice > 0 {
		t.Errorf("%d posts for %d ids; %d were lost, %d done twice", done, ids, lost, twice)
	}
	if soonest < ttl/2 { // the lease always has at least half of its TTL left
		t.Errorf("an id was worked on %v after its owner was killed, CLAIM_TTL is %v", soonest, ttl)
	}
	if most := 300 * time.Millisecond; slowest > most && !raceEnabled {
		t.Errorf("an id was worked on %v after the owner's lease had ended, at most %v is allowed", slowest, most)
	}
	t.Logf("all %d ids were worked on up to %v after the owner's lease had ended", ids, slowest.Round(time.Millisecond))
	_, err = e.etcd.Revoke(ctx, lease.ID)
	e.must(err)
	eventually(t, "everything done", func() error { return e.allDone("orders", ids) })
}
