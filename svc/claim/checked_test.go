package claim_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var checkedOps = flag.Int("checked.ops", 5000, "operations of each checked history: on one member of etcd, and on three")

const (
	claimers = 8
	workers  = 8  // of a claimer
	liveIDs  = 24 // that events come for at a time
	ttl      = 2 * time.Second
	// maxWait bounds what happens in the end, on a busy machine.
	maxWait = 2 * time.Minute
)

// The history of each id follows the rule, whatever happens to connections, to
// members of etcd and to processes.
func TestCheckedHistories(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("members=%d", members), func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, members)
			r := newRun(t, etcd, "checked")
			r.links = newLinks(t, etcd)
			stop := breakThings(t, etcd, r.links)
			left := r.work(maxWait, func() bool {
				if r.length() < *checkedOps {
					return false
				}
				stop()
				return true
			})
			if left != "" {
				t.Error(left)
			}
			r.askAgain()
			if wrong := r.wrong(true); wrong != "" {
				t.Error(wrong)
			}
			t.Logf("%d operations on %d ids in %d processes: %v", r.total, len(r.ops), r.processes.Load(), r.count)
		})
	}
}

// What a broken claimer does among seven others is noticed.
func TestCheckedHistoriesNotice(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, 1)
	for _, test := range []struct {
		name string
		wrap func(*clientv3.Client)
		want string // what is noticed
	}{
		{"nothing", func(*clientv3.Client) {}, ""},
		{"claims of others are not seen", ignoreClaims, "illegal"},
		{"records are lost", loseRecords, "illegal"},
		{"ids are taken off before they are recorded", recordLate, "illegal"},
		{"copies of writes without a condition", copyWithoutCondition, "are left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			noticed := ""
			for round := range 10 {
				r := newRun(t, etcd, strings.ReplaceAll(test.name, " ", "-")+fmt.Sprint(round))
				r.wrap = test.wrap
				noticed = r.work(2*ttl, func() bool { return r.length() >= 1000 }) + r.wrong(false)
				t.Logf("after %d operations: %s", r.length(), noticed)
				if strings.Contains(noticed, test.want) {
					break
				}
			}
			if (noticed == "") != (test.want == "") || !strings.Contains(noticed, test.want) {
				t.Errorf("noticed: %q, want %q", noticed, test.want)
			}
		})
	}
}

// run is eight claimers with their deliveries.
type run struct {
	*history
	t         *testing.T
	role      string
	links     [claimers][]*link
	wrap      func(*clientv3.Client) // breaks the first claimer; nil: none is broken
	inspector *clientv3.Client
	processes atomic.Int64

	mu     sync.Mutex
	ids    []string
	enough map[string]int // deliveries that were told that the id is done
	made   int

	ending atomic.Bool
	quiet  chan struct{} // closed when the last processes are to stop
}

// newRun returns a run whose links cannot be broken.
func newRun(t *testing.T, etcd []*stack.Etcd, role string) *run {
	t.Helper()
	client, err := etcd[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	r := &run{
		history: newHistory(), t: t, role: role, inspector: client, enough: make(map[string]int), quiet: make(chan struct{}),
	}
	for i := range r.links {
		for _, e := range etcd {
			r.links[i] = append(r.links[i], &link{address: e.Endpoint()})
		}
	}
	for range liveIDs {
		r.ids = append(r.ids, r.newID())
	}
	return r
}

func (r *run) newID() string {
	r.made++
	return fmt.Sprintf("%06d", r.made)
}

// pick returns the id of an event that has come.
func (r *run) pick() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ids[rand.IntN(len(r.ids))]
}

// skipped notes that a delivery was told that an id is done. A few more come for it.
func (r *run) skipped(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enough[id]++
	for i, live := range r.ids {
		if live == id && r.enough[id] >= 5 {
			r.ids[i] = r.newID()
		}
	}
}

// work has the claimers process events until it is enough. Then no delivery waits or
// works any more. It returns which claims are left all the same, or "", and stops
// the claimers.
func (r *run) work(maxWait time.Duration, enough func() bool) (left string) {
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	var running sync.WaitGroup
	for i := range claimers {
		running.Go(func() {
			for ctx.Err() == nil {
				life, end := ctx, func() {}
				if r.wrap == nil {
					life, end = context.WithTimeout(ctx, between(2*ttl, 10*ttl))
				}
				r.live(life, i)
				end()
			}
		})
	}
	for !enough() && ctx.Err() == nil {
		select {
		case <-r.changed:
		case <-ctx.Done():
		}
	}
	r.ending.Store(true)
	cancel()
	left = r.claimsLeft(maxWait)
	close(r.quiet)
	running.Wait()
	return left
}

// claimsLeft waits until no claim lists an id.
func (r *run) claimsLeft(maxWait time.Duration) (left string) {
	ctx, cancel := context.WithTimeout(r.t.Context(), maxWait)
	defer cancel()
	for {
		resp, err := r.inspector.Get(ctx, "/service/"+r.role+"/claim/", clientv3.WithPrefix())
		if err == nil {
			left = ""
			for _, kv := range resp.Kvs {
				left += fmt.Sprintf("%s = %s\n", kv.Key, kv.Value)
			}
			if left == "" {
				return ""
			}
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Sprintf("claims are left (%v):\n%s", err, left)
		}
	}
}

// live is one process. When ctx ends, no more events come; then the process stops
// or crashes.
func (r *run) live(ctx context.Context, claimer int) {
	p := int(r.processes.Add(1))
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil)).With("process", p)
	server := claim.Server{}
	for _, l := range r.links[claimer] {
		server.Endpoints = append(server.Endpoints, l.address)
	}
	client, err := claim.Dial(ctx, server, log)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer client.Close()
	if r.wrap != nil && claimer == 0 {
		r.wrap(client)
	}
	store := claim.NewEtcd(client, claim.Options{
		Role: r.role, TTL: ttl, Window: time.Hour, MaxIDs: 1 << 20, CloseTimeout: time.Second, Log: log,
	})
	if store.Load(ctx) != nil {
		return
	}
	storeCtx, stop := context.WithCancel(context.Background())
	defer stop()
	var running, delivering sync.WaitGroup
	running.Go(func() { store.Run(storeCtx) })
	for i := range workers {
		w := &worker{run: r, claims: store, network: r.links[claimer], process: p, number: claimer*workers + i}
		delivering.Go(func() {
			for ctx.Err() == nil {
				w.deliver(ctx, r.pick())
			}
		})
	}

	<-ctx.Done()
	if r.ending.Load() {
		<-r.quiet
	} else {
		// Handlers that do not return in time are killed with their process.
		pause(context.Background(), between(0, ttl/4))
	}
	stop()
	delivering.Wait()
	running.Wait()
}

// askAgain asks for each id once more, as a process that starts now.
func (r *run) askAgain() {
	ctx, cancel := context.WithTimeout(r.t.Context(), maxWait)
	defer cancel()
	store := claim.NewEtcd(r.inspector, claim.Options{
		Role: r.role, TTL: time.Minute, Window: time.Hour, MaxIDs: 1 << 20, CloseTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
	})
	if err := store.Load(ctx); err != nil {
		r.t.Error(err)
		return
	}
	storeCtx, stop := context.WithCancel(ctx)
	var running, asking sync.WaitGroup
	running.Go(func() { store.Run(storeCtx) })
	for i := range r.made {
		w := &worker{run: r, claims: store, process: int(r.processes.Load()) + 1, number: claimers*workers + i}
		asking.Go(func() {
			id := fmt.Sprintf("%06d", i+1)
			call := r.now()
			c, err := store.Claim(ctx, id)
			if h := w.answered(id, call, c, err); h != nil {
				w.release(h)
			}
			if ctx.Err() != nil {
				r.t.Errorf("id %s: %v", id, err)
			}
		})
	}
	asking.Wait()
	stop()
	running.Wait()
}

// worker handles one delivery after the other.
type worker struct {
	*run
	claims  *claim.Etcd
	network []*link
	process int
	number  int
}

// hold is a claim from a grant until Held ends or the delivery gives it up.
type hold struct {
	*claim.Claim
	number int
	alive  atomic.Int64 // when the delivery last knew that Held had not ended
	unhook func() bool
	over   chan struct{} // closed when the end of Held is in the history
}

// deliver asks for an id, works, and completes or releases the claim.
func (w *worker) deliver(ctx context.Context, id string) {
	waitCtx := ctx
	if rand.IntN(2) == 0 { // the delivery may be lost while it waits
		var cancel context.CancelFunc
		waitCtx, cancel = context.WithTimeout(ctx, between(0, ttl/4))
		defer cancel()
	}
	call := w.now()
	c, err := w.claims.Claim(waitCtx, id)
	for {
		h := w.answered(id, call, c, err)
		if h == nil {
			return
		}
		w.handle(ctx, h)
		switch next := rand.IntN(100); {
		case ctx.Err() != nil && !w.ending.Load() && next < 50:
			w.abandon(h)
			return
		case h.Held.Err() != nil && next < 50:
			w.suspended(h)
			call = w.now()
			err = w.claims.Reclaim(waitCtx, c)
		case next > 80:
			w.complete(h)
			return
		default:
			w.release(h)
			return
		}
	}
}

// answered notes what Claim or Reclaim has answered. It returns nil if the claim is
// not the caller's.
func (w *worker) answered(id string, call time.Duration, c *claim.Claim, err error) *hold {
	o := operation{kind: granted, process: w.process, worker: w.number, call: call, returns: w.now()}
	switch {
	case errors.Is(err, claim.ErrDone):
		o.kind = skipped
		w.skipped(id)
	case err != nil:
		o.kind = withdrawn
	default:
		o.hold, o.token = w.newHold(), c.Token
	}
	w.add(id, o)
	if err != nil {
		return nil
	}
	h := &hold{Claim: c, number: o.hold, over: make(chan struct{})}
	h.alive.Store(int64(call))
	h.unhook = context.AfterFunc(c.Held, func() {
		w.note(h, suspended, time.Duration(h.alive.Load()))
		close(h.over)
	})
	return h
}

// note adds what has happened under a claim since a time.
func (w *worker) note(h *hold, k kind, since time.Duration) {
	w.add(h.ID, operation{kind: k, process: w.process, worker: w.number, hold: h.number, call: since, returns: w.now()})
}

// suspended reports whether Held has ended. The end is in the history then, and
// will not be later otherwise.
func (w *worker) suspended(h *hold) bool {
	if !h.unhook() {
		<-h.over
		return true
	}
	if h.Held.Err() == nil {
		return false
	}
	// Held has ended, and its function had not been started yet.
	w.note(h, suspended, time.Duration(h.alive.Load()))
	return true
}

// handle is the work. Now and then it is slow, and it is while the claimer is cut off.
func (w *worker) handle(ctx context.Context, h *hold) {
	d := between(0, 8*time.Millisecond)
	if rand.IntN(20) == 0 {
		d = between(0, ttl/2)
	}
	for end := w.now() + d; w.now() < end || cutOff(w.network); pause(ctx, time.Millisecond) {
		now := w.now()
		if h.Held.Err() != nil || ctx.Err() != nil {
			return
		}
		h.alive.Store(int64(now))
	}
	if rand.IntN(10) == 0 {
		since := w.now()
		if w.claims.Check(ctx, h.Claim) == nil {
			w.note(h, checked, since)
			h.alive.Store(int64(since))
		}
	}
}

func (w *worker) complete(h *hold) {
	o := operation{kind: recorded, process: w.process, worker: w.number, hold: h.number, call: w.now()}
	if h.Held.Err() == nil {
		h.alive.Store(int64(o.call))
	}
	err := w.claims.Complete(h.Claim)
	o.returns = w.now()
	switch {
	case errors.Is(err, claim.ErrDone):
		o.kind = twice
	case errors.Is(err, claim.ErrClosed):
		o.kind, o.returns = lost, unknown
	case err != nil:
		w.t.Errorf("complete id %s: %v", h.ID, err)
	}
	w.add(h.ID, o)
	if !w.suspended(h) && o.kind == lost {
		w.note(h, abandoned, o.call)
	}
}

func (w *worker) release(h *hold) {
	since := w.now()
	over := w.suspended(h)
	w.claims.Release(h.Claim)
	if !over {
		w.note(h, released, since)
	}
}

// abandon ends the work as the crash of its process does.
func (w *worker) abandon(h *hold) {
	if !w.suspended(h) {
		w.note(h, abandoned, time.Duration(h.alive.Load()))
	}
}
