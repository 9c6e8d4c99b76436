package claim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The keys and values have the documented format, because operators read them.
func TestFormat(t *testing.T) {
	p := start(t, sharedEtcd(t), claim.Options{Window: time.Hour, Types: []string{"new_order", "refund"}})
	want := func(keys map[string]string) {
		t.Helper()
		host, _ := os.Hostname()
		keys["session/"+p.session] = fmt.Sprintf(`{"host":%q,"pid":%d,"types":["new_order","refund"]}`, host, os.Getpid())
		if got := p.keys(""); !maps.Equal(got, keys) {
			t.Errorf("the keys are %v, want %v", got, keys)
		}
	}
	c := p.mustClaim(`a<"1">`)
	key, list := "claim/"+p.session+"/0000000000000002", `["a<\"1\">"]`
	want(map[string]string{key: list})
	if resp, _ := p.client.Get(t.Context(), p.prefix+key); len(p.session) != 16 || resp.Kvs[0].CreateRevision != c.Token {
		t.Errorf("the token is %d, the claim %v", c.Token, resp.Kvs)
	}
	if err := p.Complete(c); err != nil {
		t.Fatal(err)
	}
	window, lease := "", clientv3.LeaseID(0)
	for key := range p.keys("window/") {
		window = strings.TrimPrefix(key, "window/")
		fmt.Sscanf(window, "%016x", &lease)
	}
	want(map[string]string{"window/" + window: "1h0m0s", "done/" + window + "/" + p.session + "/0000000000000003": list})
	if ttl, err := p.client.TimeToLive(t.Context(), lease); err != nil || ttl.GrantedTTL < 3600 || ttl.GrantedTTL > 3600*9/8 {
		t.Errorf("the record lives for %d s (%v), want an hour to an hour and an eighth", ttl.GrantedTTL, err)
	}
}

// Records expire after DEDUP_WINDOW and not before, for all processes. With a window of
// 0 they never expire.
func TestDedupWindow(t *testing.T) {
	short := start(t, sharedEtcd(t), claim.Options{Window: time.Second})
	forever := start(t, sharedEtcd(t), claim.Options{})
	began := time.Now()
	short.mustComplete("short")
	forever.mustComplete("long")
	forever.mustBeDone("long")
	eventually(t, func() error {
		c, err := forever.claim("short")
		if err == nil {
			forever.Release(c)
		}
		if early := time.Since(began) < time.Second; early && !errors.Is(err, claim.ErrDone) {
			t.Errorf("within the window: %v", err)
		} else if early || err != nil {
			return fmt.Errorf("the id is still remembered: %w", err)
		}
		return nil
	})
	short.mustBeDone("long")
	if early := short.log.find("before DEDUP_WINDOW"); len(early) > 0 {
		t.Errorf("the window has ended in time: %q", early)
	}
	if n := len(short.keys("window/forever")); n != 1 {
		t.Errorf("%d windows for ever", n)
	}
}

// With more ids than MaxIDs of one process all forget the oldest, one window at a time, so that its
// memory stays bounded, and log a warning.
func TestMaxIDs(t *testing.T) {
	const most, ids, workers = 8000, 40_000, 200
	a := start(t, sharedEtcd(t), claim.Options{Window: time.Hour, MaxIDs: most})
	b := start(t, sharedEtcd(t), claim.Options{Window: time.Hour}) // whose memory would reach further
	var working sync.WaitGroup
	var completed atomic.Int64
	for from := range workers {
		working.Go(func() {
			for n := from; n < ids; n += workers {
				a.mustComplete(fmt.Sprint(n))
				completed.Add(1)
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for full := false; completed.Load() < ids && !t.Failed(); <-tick.C {
		n := a.Remembered()
		if full = full || n > most; full && n < most-most/8 {
			t.Errorf("only %d ids are remembered of %d", n, most)
		}
	}
	working.Wait()
	eventually(t, func() error {
		if n, m := a.Remembered(), b.Remembered(); n > most || n != m {
			return fmt.Errorf("%d and %d ids are remembered", n, m)
		}
		return nil
	})
	b.mustBeDone(fmt.Sprint(ids - 1))
	b.mustComplete("0")
	for _, p := range []*process{a, b} {
		p.log.await("level=WARN", "before DEDUP_WINDOW", "memory_reach=", "hint=", "CACHE_SIZE")
	}
}

// Without a window no id is forgotten, and one warning is logged. A process that starts where more than
// twice MaxIDs ids are remembered, without those that are for ever, reads no further and forgets nothing.
// One that may start forgets ids in windows as usual.
func TestMaxIDsForEver(t *testing.T) {
	e := sharedEtcd(t)
	p, forever := start(t, e, claim.Options{Window: time.Hour}), start(t, e, claim.Options{MaxIDs: 10})
	for i := range 30 {
		p.mustComplete(fmt.Sprint(i))
		forever.mustComplete(fmt.Sprint("ever", i))
	}
	forever.log.await("level=WARN", "CACHE_SIZE", "hint=")
	for most, want := range map[int]error{14: claim.ErrCacheSize, 15: nil} {
		log := slog.New(slog.DiscardHandler)
		err := claim.NewEtcd(etcd.New(newClient(t, e), log), claim.Options{Role: roleOf(t), Window: time.Hour, MaxIDs: most, Log: log}).Load(t.Context())
		if !errors.Is(err, want) {
			t.Errorf("CACHE_SIZE=%d: %v, want %v", most, err, want)
		}
		if want != nil && (!strings.Contains(err.Error(), "14") || !strings.Contains(claim.Hint(err), "etcdctl lease revoke")) {
			t.Errorf("the error is %q with the hint %q", err, claim.Hint(err))
		}
	}
	if n, warnings := p.Remembered(), forever.log.find("level=WARN", "CACHE_SIZE"); n != 60 || len(warnings) != 1 {
		t.Errorf("%d ids are remembered, want 60; warnings: %q", n, warnings)
	}
	later := start(t, e, claim.Options{Window: time.Hour, MaxIDs: 40})
	for i := range 100 {
		later.mustComplete(fmt.Sprint("later", i))
	}
	eventually(t, func() error {
		if n := later.Remembered(); n > 40 {
			return fmt.Errorf("%d ids are remembered", n)
		}
		return nil
	})
	later.mustBeDone("later99")
	later.mustBeDone("ever0")
}

// A clean stop frees at once all claims that wait or were released. A claim that is
// still held is left to expire.
func TestStopRevokes(t *testing.T) {
	o := claim.Options{Window: time.Hour, TTL: time.Hour}
	a, b := start(t, sharedEtcd(t), o), start(t, sharedEtcd(t), o)
	released, waits := a.mustClaim("1"), make(chan error, 1)
	go func() {
		_, err := b.claim("1")
		waits <- err
	}()
	b.awaitClaims(2)
	b.Close()
	if err := <-waits; !errors.Is(err, claim.ErrClosed) {
		t.Errorf("the waiting delivery gets %v", err)
	}
	a.Release(released)
	a.Close()
	if left := a.keys(""); len(left) > 0 {
		t.Errorf("keys are left: %v", left)
	}

	p := start(t, sharedEtcd(t), o)
	held := p.mustClaim("1")
	p.Close()
	_, err := p.claim("2")
	for call, err := range map[string]error{
		"Claim": err, "Held": context.Cause(held.Held), "Check": p.Check(t.Context(), held), "Complete": p.Complete(held),
	} {
		if !errors.Is(err, claim.ErrClosed) {
			t.Errorf("after the end %s: %v", call, err)
		}
	}
	p.awaitClaims(1)
	p.log.await("level=WARN", "done again when the claims expire", "claims=1")
}

// A session that was deleted by hand is replaced. Finished work is recorded without
// being done again; ids of unfinished work are claimed again.
func TestSessionDeletedByHand(t *testing.T) {
	for _, what := range []string{"key", "lease"} {
		t.Run(what, func(t *testing.T) {
			p := start(t, sharedEtcd(t), claim.Options{Window: time.Hour})
			p.mustComplete("before")
			finished, unfinished := p.mustClaim("finished"), p.mustClaim("unfinished")
			token := unfinished.Token
			var err error
			if what == "key" {
				_, err = p.client.Delete(t.Context(), p.prefix+"session/"+p.session)
			} else {
				_, err = p.client.Revoke(t.Context(), p.lease)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Complete(finished); err != nil {
				t.Errorf("complete: %v", err)
			}
			<-unfinished.Held.Done()
			if err := p.Reclaim(t.Context(), unfinished); err != nil || unfinished.Token <= token {
				t.Errorf("claimed again: %v, token %d after %d", err, unfinished.Token, token)
			}
			if err := p.Complete(unfinished); err != nil {
				t.Errorf("complete: %v", err)
			}
			p.mustBeDone("finished")
			p.log.await("level=WARN", "session lost")
			// A machine that was suspended does not know how old its window is: the new session takes a new one.
			if s, w := len(p.keys("session/")), len(p.keys("window/")); s != 1 || w != 2 {
				t.Errorf("%d sessions, %d windows", s, w)
			}
		})
	}
}

// Unreadable keys are ignored, whether they exist at the start or appear later. They are logged in one
// short line each time that keys are read, however many they are.
func TestForeignKeys(t *testing.T) {
	e, prefix := sharedEtcd(t), "/service/"+roleOf(t)+"/32/"
	for i := range 10 {
		var puts []clientv3.Op
		for j := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprint(prefix, 100*i+j), "done 17000000")) // of the first version
		}
		if _, err := newClient(t, e).Txn(t.Context()).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, e, claim.Options{Window: time.Hour})
	if lines := p.log.find("level=WARN"); len(lines) != 1 || len(lines[0]) > 500 || len(p.log.find("level=WARN", "32/0", "hint=")) != 1 {
		t.Errorf("%d lines with %d bytes are logged", len(lines), len(strings.Join(lines, "")))
	}
	for _, id := range []string{"122", "123"} {
		if _, err := p.client.Put(t.Context(), p.prefix+"claim/by-hand/1", "123"); err != nil {
			t.Fatal(err)
		}
		p.log.await("level=WARN", "claim/by-hand/1", "hint=")
		p.mustComplete(id) // after the process has seen the key
	}
	if n := len(p.log.find("claim/by-hand/1")); n != 1 {
		t.Errorf("the key is logged %d times, want once", n)
	}
}
