package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

func TestFrozenFollower(t *testing.T) { testFrozenMember(t, false) }
func TestFrozenLeader(t *testing.T)   { testFrozenMember(t, true) }

// testFrozenMember freezes one of three etcd members for twice CLAIM_TTL. The work
// continues with the others, and no session ends, even if its renewals and its watch go
// to the frozen member. A frozen leader that resumes may revoke all leases: it counts the
// time in which it was frozen as time without renewals. (etcd 3.7.3 does so without this
// service, too.) Only in that case are handlers cancelled and events done again.
func testFrozenMember(t *testing.T, leader bool) {
	const ttl = 6 * time.Second
	t.Parallel() // it shares nothing
	w := newFaultEnvAt(t, shared.rabbit.URL()+newVhost(t), startEtcds(t, 3, stack.EtcdOptions{}), nil, fmt.Sprint("CLAIM_TTL=", ttl))
	w.publishSteadily()
	w.healthy()
	frozen := w.etcdLeader()
	if !leader {
		others := slices.DeleteFunc(slices.Clone(w.members), func(m *stack.Etcd) bool { return m == frozen })
		if frozen = others[0]; w.watchers(others[1]) > w.watchers(others[0]) {
			frozen = others[1]
		}
	}
	watchers, sessions := w.watchers(frozen), slices.Sorted(maps.Keys(w.keys("orders").sessions))

	w.must(frozen.Pause())
	from := time.Now()
	over := time.After(2 * ttl)
	took := w.goneOn(from)
	w.healthy()
	both := time.Since(from)
	if both > 2*ttl {
		t.Errorf("one replica did no work for up to %v", both)
	}
	<-over
	w.wantLog(0, 0, "session lost")
	w.must(frozen.Resume())
	resumed := time.Now()
	if silence := longestSilence(w.receiver.all(), from, resumed); silence > ttl {
		t.Errorf("nothing was begun for %v while one member of three was frozen", silence)
	}
	w.healthy()
	t.Logf("it had %v watches; an event published after it was frozen was done after %v, 20 by each replica after %v; nothing was begun for up to %v",
		watchers, took.Round(time.Millisecond), both.Round(time.Millisecond), longestSilence(w.receiver.all(), from, time.Now()).Round(time.Millisecond))
	if revoked := metric(t, frozen, "etcd_debugging_server_lease_expired_total"); leader && revoked > 0 {
		t.Logf("as it resumed, the frozen leader revoked %v leases", revoked)
		w.allow("the frozen leader revoked leases", resumed, resumed.Add(2*time.Second), w.fresh())
	} else {
		if now := slices.Sorted(maps.Keys(w.keys("orders").sessions)); !slices.Equal(sessions, now) {
			t.Errorf("the sessions were %v, now they are %v", sessions, now)
		}
	}
	w.finish()
}

// watchers returns the number of watches on a member.
func (w *faultEnv) watchers(m *stack.Etcd) float64 {
	return metric(w.t, m, "etcd_debugging_mvcc_watcher_total")
}

// metric returns one of the metrics that etcd exports.
func metric(t testing.TB, m *stack.Etcd, name string) (value float64) {
	t.Helper()
	resp, err := http.Get("http://" + m.Endpoint() + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	_, rest, found := strings.Cut(string(text), "\n"+name+" ")
	if _, err := fmt.Sscan(rest, &value); !found || err != nil {
		t.Fatalf("etcd does not export %s: %v", name, err)
	}
	return value
}

// etcd is restored from a backup while replicas run, with revisions that go back or are
// bumped, or has lost all data. Ids in the backup are skipped. Ids that were recorded later are forgotten, and
// done again when they are published again. New events are done.
func TestEtcdRestored(t *testing.T) {
	t.Parallel()
	for name, bump := range map[string]uint64{"revisions go back": 0, "revisions are bumped": 1_000_000_000, "nothing is left": 0} {
		t.Run(name, func(t *testing.T) {
			w := newFaultEnv(t)
			ctx := deadline(t)
			if name != "nothing is left" {
				w.publishSteadily()
				w.progress(200)
			}
			recorded := w.keys("orders").done()
			saved, backup := time.Now(), filepath.Join(t.TempDir(), "backup")
			w.must(w.etcdServer.Save(ctx, backup))
			if name == "nothing is left" {
				w.publishSteadily()
			}
			w.progress(200)

			w.must(w.etcdServer.Kill())
			w.must(w.etcdServer.Restore(backup, bump))
			w.must(w.etcdServer.Start(ctx))
			if now := uint64(w.revision()); now < bump || bump == 0 && now > 1_000_000 {
				t.Errorf("the revision is %d, bumped by %d", now, bump)
			}
			restored := time.Now()
			w.tokensGoBack = bump == 0
			w.allow("the backup lacks the record", saved, restored, w.fresh())
			took := w.goneOn(restored)
			w.replicas[0].waitLog("level=WARN", "view read again", "before=", "etcd has lost data or was restored")
			w.replicas[0].wantLines(0, "the oldest ids are forgotten")
			w.healthy()
			both := time.Since(restored)
			if both > 10*time.Second {
				t.Errorf("both replicas work %v after the restore", both)
			}
			t.Logf("%d ids in the backup; an event published after the restore was done after %v, 20 by each replica after %v",
				len(recorded), took.Round(time.Millisecond), both.Round(time.Millisecond))

			w.stopPublishing()
			w.publishing.Wait()
			w.publishBodies(orders("w", w.published)...)
			w.finish()
			for _, p := range w.receiver.all() {
				if recorded[p.ID] && p.Began.After(restored) {
					t.Errorf("%s was in the backup and was done again", p.ID)
				}
			}
		})
	}
}

// revision returns etcd's present revision.
func (e *env) revision() int64 {
	resp, err := e.etcd.Get(deadline(e.t), "/")
	e.must(err)
	return resp.Header.Revision
}

// An idle replica keeps its session across a restore, and its watch waits for revisions
// that soon exist again with a different history. The replica must not continue there: it
// skips the ids that another replica has recorded since the restore.
func TestEtcdRestoredBehindAnIdleReplica(t *testing.T) {
	const saved, lost = 200, 400
	b := newProxiedEnv(t)
	ctx := deadline(t)
	receiver := newReceiver(t, nil)
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL, "CLAIM_TTL=60s", "HEALTH_ADDR=127.0.0.1:0"}
	idle := b.start("orders", vars...)
	idle.waitLog("msg=consuming")
	b.toRabbit.cut() // this replica is idle from now on
	busy := b.start("orders", append(vars, "AMQP_URL="+b.directAMQP)...)
	busy.waitLog("msg=consuming")
	b.publishLone("saved", saved)
	b.waitCounts(map[string]int64{"orders_new_order_ok": saved})
	backup := filepath.Join(t.TempDir(), "backup")
	b.must(b.etcdServer.Save(ctx, backup))
	b.publishLone("lost", lost)
	b.waitCounts(map[string]int64{"orders_new_order_ok": saved + lost})
	b.waitRemembered(idle)
	last := b.revision()

	b.must(b.etcdServer.Kill())
	b.must(b.etcdServer.Restore(backup, 0))
	b.must(b.etcdServer.Start(ctx))
	var bodies []string // recorded after the restore, until it reaches the last revision before it
	for part := 0; b.revision() <= last; part++ {
		prefix := fmt.Sprintf("again%d-", part)
		b.publishLone(prefix, 100)
		bodies = append(bodies, orders(prefix, 100)...)
		b.waitCounts(map[string]int64{"orders_new_order_ok": saved + lost + int64(len(bodies))})
	}
	busy.stop()
	b.toRabbit.reconnect()
	b.publishBodies(append(orders("saved", saved), bodies...)...)
	eventually(t, "an empty queue", func() error { return b.allDone("orders", saved+len(bodies)) })
	idle.stop()
	if n, want := len(receiver.all()), saved+lost+len(bodies); n != want {
		t.Errorf("%d posts, want %d: ids that were recorded after the restore were done again", n, want)
	}
}
