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
	ownerSession := e.session()
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

	killed.Store(true)
	kill := time.Now()
	ended := e.kill(owner, ownerSession)
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

// session returns the name of the only session of orders.
func (e *env) session() (name string) {
	e.t.Helper()
	sessions := e.keys("orders").sessions
	if len(sessions) != 1 {
		e.t.Fatalf("%d sessions, want 1", len(sessions))
	}
	for name = range sessions {
	}
	return name
}

// kill kills a replica and waits for the end of its session. It returns the time of that.
func (e *env) kill(owner *service, session string) (ended time.Time) {
	e.t.Helper()
	watch := e.etcd.Watch(deadline(e.t), "/service/orders/session/"+session)
	owner.kill()
	for resp := range watch {
		for _, event := range resp.Events {
			if event.Type == clientv3.EventTypeDelete {
				return time.Now()
			}
		}
	}
	e.t.Fatal("the owner's session does not end")
	return time.Time{}
}

// waitingSession writes the keys of a replica that waits for the ids m0, m1, …, n in all.
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
