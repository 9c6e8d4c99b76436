package claim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// startOn starts a process on an etcd, without a proxy.
func startOn(t testing.TB, etcd *stack.Etcd, o claim.Options) *process {
	t.Helper()
	client := newClient(t, etcd)
	return start(t, client, client, o)
}

func (p *process) mustClaim(id string) *claim.Claim {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := p.Claim(ctx, id)
	if err != nil {
		p.t.Fatalf("claim of %s: %v", id, err)
	}
	return c
}

func (p *process) mustComplete(id string) {
	p.t.Helper()
	if err := p.Complete(p.mustClaim(id)); err != nil {
		p.t.Fatalf("complete of %s: %v", id, err)
	}
}

func (p *process) mustBeDone(id string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c, err := p.Claim(ctx, id); !errors.Is(err, claim.ErrDone) {
		p.t.Errorf("claim of %s: %+v, %v, want ErrDone", id, c, err)
	}
}

// keys returns the keys of the role that begin with prefix, with their values.
func (p *process) keys(prefix string) map[string]string {
	p.t.Helper()
	resp, err := p.client.Get(context.Background(), p.prefix+prefix, clientv3.WithPrefix())
	if err != nil {
		p.t.Fatal(err)
	}
	keys := make(map[string]string)
	for _, kv := range resp.Kvs {
		keys[strings.TrimPrefix(string(kv.Key), p.prefix)] = string(kv.Value)
	}
	return keys
}

// The keys and values have the documented format, because operators read them.
func TestFormat(t *testing.T) {
	p := startOn(t, sharedEtcd(t), claim.Options{Role: newRole(), Window: time.Hour, Types: []string{"new_order", "refund"}})
	c := p.mustClaim(`a<"1">`)
	claims := p.keys("claim/")
	for key, value := range claims {
		var session string
		var n int64
		if _, err := fmt.Sscanf(strings.ReplaceAll(key, "/", " "), "claim %16s %016d", &session, &n); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if value != `["a<\"1\">"]` {
			t.Errorf("%s is %s", key, value)
		}
		host, _ := os.Hostname()
		want := fmt.Sprintf(`{"host":%q,"pid":%d,"types":["new_order","refund"]}`, host, os.Getpid())
		if value := p.keys("session/")["session/"+session]; value != want {
			t.Errorf("the session's key is %s, want %s", value, want)
		}
		if resp, _ := p.client.Get(t.Context(), p.prefix+key); resp.Kvs[0].CreateRevision != c.Token {
			t.Errorf("the token is %d, the claim's CreateRevision %d", c.Token, resp.Kvs[0].CreateRevision)
		}
	}
	if err := p.Complete(c); err != nil || len(claims) != 1 {
		t.Fatal(err, claims)
	}
	if left := p.keys("claim/"); len(left) > 0 {
		t.Errorf("claims are left: %v", left)
	}
	records := p.keys("done/")
	if len(records) != 1 {
		t.Errorf("records: %v", records)
	}
	for key, value := range records {
		window := strings.Split(key, "/")[1]
		if value != `["a<\"1\">"]` || p.keys("window/")["window/"+window] != "1h0m0s" {
			t.Errorf("%s is %s; windows: %v", key, value, p.keys("window/"))
		}
		var lease clientv3.LeaseID
		fmt.Sscanf(window, "%016x", &lease)
		ttl, err := p.client.TimeToLive(t.Context(), lease)
		if err != nil || ttl.GrantedTTL < 3600 || ttl.GrantedTTL > 3600*9/8 {
			t.Errorf("the record lives for %d s (%v), want an hour to an hour and an eighth", ttl.GrantedTTL, err)
		}
	}
}

// A process knows how many processes of the role live, and which types the others handle. A session
// of an earlier version handles none.
func TestSessions(t *testing.T) {
	role := newRole()
	a := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Hour, Types: []string{"new_order"}})
	mustKnow := func(sessions int, newOrder, refund bool) {
		t.Helper()
		eventually(t, func() error {
			if n, o, r := a.Sessions(), a.HandledElsewhere("new_order"), a.HandledElsewhere("refund"); n != sessions || o != newOrder || r != refund {
				return fmt.Errorf("%d sessions; new_order is handled elsewhere: %t, refund: %t; want %d, %t, %t", n, o, r, sessions, newOrder, refund)
			}
			return nil
		})
	}
	mustKnow(1, false, false)
	b := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Hour, Types: []string{"new_order", "refund"}})
	mustKnow(2, true, true)
	b.Close()
	mustKnow(1, false, false)
	for _, value := range []string{"vm 17285", "refund"} {
		if _, err := a.client.Put(t.Context(), a.prefix+"session/"+value, value); err != nil {
			t.Fatal(err)
		}
	}
	mustKnow(3, false, false)
	if warnings := a.log.find("level=WARN"); len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
}

// Records expire after DEDUP_WINDOW and not before, for all processes. With a window of
// 0 they never expire.
func TestDedupWindow(t *testing.T) {
	role := newRole()
	short := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Second})
	forever := startOn(t, sharedEtcd(t), claim.Options{Role: role})
	began := time.Now()
	short.mustComplete("short")
	forever.mustComplete("long")
	for _, p := range []*process{short, forever} {
		p.mustBeDone("long")
	}
	c, err := forever.Claim(t.Context(), "short")
	if passed := time.Since(began); passed < time.Second && !errors.Is(err, claim.ErrDone) {
		t.Errorf("after %v: %v", passed, err)
	}
	if err == nil {
		forever.Release(c)
	}
	eventually(t, func() error {
		c, err := forever.Claim(t.Context(), "short")
		if err == nil {
			forever.Release(c)
			return nil
		}
		return fmt.Errorf("the id is still remembered: %w", err)
	})
	if passed := time.Since(began); passed < time.Second {
		t.Errorf("the id was forgotten after %v", passed)
	}
	short.mustBeDone("long")
	if early := short.log.find("before DEDUP_WINDOW"); len(early) > 0 {
		t.Errorf("the window has ended in time: %q", early)
	}
	if n := len(short.keys("window/forever")); n != 1 {
		t.Errorf("%d windows for ever", n)
	}
}

// With more ids than MaxIDs of one process all forget the oldest, so that its memory stays
// bounded, and log a warning.
func TestMaxIDs(t *testing.T) {
	const most, ids = 800, 4000
	role := newRole()
	a := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Hour, MaxIDs: most})
	b := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Hour}) // whose memory would reach further
	for from := 0; from < ids; from += 100 {
		var wg sync.WaitGroup
		for i := from; i < from+100; i++ {
			wg.Go(func() { a.mustComplete(fmt.Sprint(i)) })
		}
		wg.Wait()
		eventually(t, func() error {
			if n, m := a.Remembered(), b.Remembered(); n > most || n != m {
				return fmt.Errorf("%d and %d ids are remembered", n, m)
			}
			return nil
		})
	}
	b.mustBeDone(fmt.Sprint(ids - 1))
	b.mustComplete("0")
	for _, p := range []*process{a, b} {
		p.log.await("level=WARN", "before DEDUP_WINDOW", "memory_reach=", "hint=", "CACHE_SIZE")
	}
	if n := b.Remembered(); n < most/2 {
		t.Errorf("only %d ids are remembered", n)
	}
}

// A process that starts where more than twice MaxIDs ids are remembered, without those that are for
// ever, reads no further and forgets nothing.
func TestMaxIDsAtTheStart(t *testing.T) {
	etcdServer, role := sharedEtcd(t), newRole()
	p := startOn(t, etcdServer, claim.Options{Role: role, Window: time.Hour})
	forever := startOn(t, etcdServer, claim.Options{Role: role})
	for i := range 30 {
		p.mustComplete(fmt.Sprint(i))
		forever.mustComplete(fmt.Sprint("ever", i))
	}
	for most, want := range map[int]error{14: claim.ErrCacheSize, 15: nil} {
		log := slog.New(slog.DiscardHandler)
		err := claim.NewEtcd(etcd.New(newClient(t, etcdServer), log), claim.Options{Role: role, Window: time.Hour, MaxIDs: most, Log: log}).Load(t.Context())
		if !errors.Is(err, want) {
			t.Errorf("CACHE_SIZE=%d: %v, want %v", most, err, want)
		}
		if want != nil && (!strings.Contains(err.Error(), "14") || !strings.Contains(claim.Hint(err), "etcdctl lease revoke")) {
			t.Errorf("the error is %q with the hint %q", err, claim.Hint(err))
		}
	}
	if n := p.Remembered(); n != 60 {
		t.Errorf("%d ids are remembered, want 60", n)
	}
}

// A busy process that remembers too many ids ends one window at a time.
func TestMaxIDsUnderLoad(t *testing.T) {
	const most, ids, workers = 8000, 40_000, 200
	p := startOn(t, sharedEtcd(t), claim.Options{Role: newRole(), Window: time.Hour, MaxIDs: most})
	var next atomic.Int64
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for n := next.Add(1); n <= ids; n = next.Add(1) {
				p.mustComplete(fmt.Sprint(n))
			}
		})
	}
	done := make(chan struct{})
	go func() {
		working.Wait()
		close(done)
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for full := false; ; {
		n := p.Remembered()
		if full = full || n > most; full && n < most-most/8 {
			t.Errorf("only %d ids are remembered of %d", n, most)
			full = false
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// Without a window no id is forgotten, and one warning is logged. Ids that are later
// recorded in a window that ends are forgotten as usual.
func TestMaxIDsForEver(t *testing.T) {
	role := newRole()
	p := startOn(t, sharedEtcd(t), claim.Options{Role: role, MaxIDs: 10})
	for i := range 30 {
		p.mustComplete(fmt.Sprint(i))
	}
	p.log.await("level=WARN", "CACHE_SIZE", "hint=")
	for i := range 30 {
		p.mustBeDone(fmt.Sprint(i))
	}
	if n := len(p.log.find("level=WARN", "CACHE_SIZE")); n != 1 {
		t.Errorf("%d warnings", n)
	}
	later := startOn(t, sharedEtcd(t), claim.Options{Role: role, Window: time.Hour, MaxIDs: 40})
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
	later.mustBeDone("0")
}

// A clean stop frees at once all claims that wait or were released. A claim that is
// still held is left to expire.
func TestStopRevokes(t *testing.T) {
	t.Run("nothing is held", func(t *testing.T) {
		etcd, role := sharedEtcd(t), newRole()
		a := startOn(t, etcd, claim.Options{Role: role, Window: time.Hour, TTL: time.Hour})
		b := startOn(t, etcd, claim.Options{Role: role, Window: time.Hour, TTL: time.Hour})
		c := a.mustClaim("1")
		waits := make(chan error, 1)
		go func() {
			_, err := b.Claim(context.Background(), "1")
			waits <- err
		}()
		eventually(t, func() error {
			if n := len(b.keys("claim/")); n != 2 {
				return fmt.Errorf("%d claims", n)
			}
			return nil
		})
		b.Close()
		if err := <-waits; !errors.Is(err, claim.ErrClosed) {
			t.Errorf("the waiting delivery gets %v", err)
		}
		a.Release(c)
		a.Close()
		if left := a.keys(""); len(left) > 0 {
			t.Errorf("keys are left: %v", left)
		}
	})
	t.Run("a claim is held", func(t *testing.T) {
		p := startOn(t, sharedEtcd(t), claim.Options{Role: newRole(), Window: time.Hour, TTL: time.Hour})
		held := p.mustClaim("1")
		p.Close()
		_, err := p.Claim(t.Context(), "2")
		for call, err := range map[string]error{
			"Claim": err, "Held": context.Cause(held.Held), "Check": p.Check(t.Context(), held), "Complete": p.Complete(held),
		} {
			if !errors.Is(err, claim.ErrClosed) {
				t.Errorf("after the end %s: %v", call, err)
			}
		}
		if left := p.keys("claim/"); len(left) != 1 {
			t.Errorf("claims: %v", left)
		}
		p.log.await("level=WARN", "done again when the claims expire", "claims=1")
	})
}

// A session that was deleted by hand is replaced. Finished work is recorded without
// being done again; ids of unfinished work are claimed again.
func TestSessionDeletedByHand(t *testing.T) {
	for name, remove := range map[string]func(p *process) error{
		"its key": func(p *process) error {
			_, err := p.client.Delete(context.Background(), p.prefix+"session/", clientv3.WithPrefix())
			return err
		},
		"its lease": func(p *process) error {
			_, err := p.client.Revoke(context.Background(), p.lease)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := startOn(t, sharedEtcd(t), claim.Options{Role: newRole(), Window: time.Hour})
			p.mustComplete("before")
			finished, unfinished := p.mustClaim("finished"), p.mustClaim("unfinished")
			token := unfinished.Token
			if err := remove(p); err != nil {
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
			if n := len(p.keys("session/")); n != 1 {
				t.Errorf("%d sessions", n)
			}
			// A machine that was suspended does not know how old its window is.
			if n := len(p.keys("window/")); n != 2 {
				t.Errorf("%d windows, want a new one for the new session", n)
			}
		})
	}
}

// Unreadable keys are logged and ignored, whether they exist at the start or appear
// later.
func TestForeignKeys(t *testing.T) {
	etcd, role := sharedEtcd(t), newRole()
	client := newClient(t, etcd)
	put := func(key, value string) {
		if _, err := client.Put(t.Context(), "/service/"+role+"/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("32/123", "done 17000000") // of the first version
	p := startOn(t, etcd, claim.Options{Role: role, Window: time.Hour})
	p.log.await("level=WARN", "32/123", "hint=")
	for _, id := range []string{"122", "123"} {
		put("claim/by-hand/1", "123")
		p.log.await("level=WARN", "claim/by-hand/1", "hint=")
		p.mustComplete(id) // after the process has seen the key
	}
	if n := len(p.log.find("claim/by-hand/1")); n != 1 {
		t.Errorf("the key is logged %d times, want once", n)
	}
}

// With a DEDUP_WINDOW that is shorter than etcd's answers take, ids are recorded all the
// same.
func TestWindowShorterThanAnAnswer(t *testing.T) {
	client := newClient(t, sharedEtcd(t))
	client.Lease = shortLeases{client.Lease}
	p := start(t, client, client, claim.Options{Role: newRole(), TTL: time.Hour, Window: time.Second})
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		p.mustComplete("1")
	}()
	select {
	case <-recorded:
	case <-time.After(10 * time.Second):
		t.Fatal("the id is not recorded")
	}
}

// shortLeases stands for an etcd whose answers take four seconds: the leases that it grants
// for less have ended by then.
type shortLeases struct{ clientv3.Lease }

func (l shortLeases) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	resp, err := l.Lease.Grant(ctx, ttl)
	if err == nil && ttl < 4 {
		_, err = l.Lease.Revoke(ctx, resp.ID)
	}
	return resp, err
}

// Many unreadable keys, such as those of the first version, are logged in one short line
// each time that all keys are read.
func TestManyForeignKeys(t *testing.T) {
	etcd, role := sharedEtcd(t), newRole()
	client := newClient(t, etcd)
	for i := range 10 {
		var puts []clientv3.Op
		for j := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("/service/%s/32/%d", role, 100*i+j), "done 17000000"))
		}
		if _, err := client.Txn(t.Context()).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	p := startOn(t, etcd, claim.Options{Role: role, Window: time.Hour})
	if lines := p.log.find("level=WARN"); len(lines) != 1 || len(lines[0]) > 500 {
		t.Errorf("%d lines with %d bytes are logged", len(lines), len(strings.Join(lines, "")))
	}
}
