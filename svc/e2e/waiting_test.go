package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A hundred replicas wait for the ids of one that is killed: four processes, and
// behind them the claims of 96 sessions that do nothing. As soon as the owner's
// lease has ended the next one works, on each id once.
func TestManyWait(t *testing.T) {
	const ids, processes, sessions = 20, 4, 96
	e := newEnv(t)
	e.topology("orders")
	ctx := deadline(t)
	var killed atomic.Bool
	release := make(chan struct{})
	posted := make(chan string, 10*ids)
	sink := newSink(t, func(p post) int {
		if killed.Load() {
			return http.StatusOK
		}
		posted <- p.id
		<-release
		return http.StatusTeapot
	})
	t.Cleanup(func() { close(release) })
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + sink.URL, "CLAIM_TTL=2s"}
	owner := e.start("orders", append(vars, fmt.Sprint("PREFETCH=", ids))...)
	owner.waitLog("msg=consuming")
	e.publishBodies(orders("m", ids)...)
	for range ids {
		<-posted
	}
	keys := e.keys("orders")
	var ownerSession string
	for session := range keys.sessions {
		ownerSession = session
	}
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
	for i := range sessions {
		e.waitingSession(ctx, fmt.Sprintf("%016x", i), lease.ID, ids)
	}

	watch := e.etcd.Watch(ctx, "/service/orders/session/"+ownerSession)
	killed.Store(true)
	owner.kill()
	for ended := false; !ended; {
		resp, ok := <-watch
		if !ok {
			t.Fatal("the owner's session does not end")
		}
		for _, event := range resp.Events {
			ended = ended || event.Type == clientv3.EventTypeDelete
		}
	}
	ended := time.Now()
	e.waitCounts(map[string]int64{"orders_new_order_ok": ids, "orders_new_order_skipped": processes * ids})
	slowest := time.Duration(0)
	done := 0
	for _, p := range sink.all() {
		if p.status == http.StatusOK {
			done++
			slowest = max(slowest, p.began.Sub(ended))
		}
	}
	if lost, twice := sink.accounts("m", ids); done != ids || lost > 0 || twice > 0 {
		t.Errorf("%d posts for %d ids; %d were lost, %d done twice", done, ids, lost, twice)
	}
	if most := 300 * time.Millisecond; slowest > most && !raceEnabled {
		t.Errorf("an id was worked on %v after the owner's lease had ended, at most %v is allowed", slowest, most)
	}
	t.Logf("all %d ids were worked on up to %v after the owner's lease had ended", ids, slowest.Round(time.Millisecond))
	_, err = e.etcd.Revoke(ctx, lease.ID)
	e.must(err)
	eventually(t, "everything done", func() error { return e.settled("orders", ids) })
}

// waitingSession writes what a replica has written that waits for the ids m0 and
// on.
func (e *env) waitingSession(ctx context.Context, session string, lease clientv3.LeaseID, n int) {
	e.t.Helper()
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprint("m", i))
	}
	_, err := e.etcd.Txn(ctx).Then(
		clientv3.OpPut("/service/orders/session/"+session, "a test", clientv3.WithLease(lease)),
		clientv3.OpPut("/service/orders/claim/"+session+"/0000000000000001", string(listIDs(ids)), clientv3.WithLease(lease)),
	).Commit()
	e.must(err)
}
