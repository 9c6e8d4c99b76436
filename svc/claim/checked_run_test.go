package claim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/ids/lookup"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// run runs eight claimers and their deliveries.
type run struct {
	history
	t         *testing.T
	role      string
	links     [claimers][]*link
	wrap      func(*clientv3.Client) // breaks the client of the first claimer; nil: no claimer is broken
	inspector *clientv3.Client
	processes atomic.Int64

	ending atomic.Bool
	quiet  chan struct{} // closed when the last processes may stop
}

// newRun returns a run of that many operations, whose links cannot be broken.
func newRun(t *testing.T, etcd []*stack.Etcd, wanted int) *run {
	t.Helper()
	r := &run{
		history: history{began: time.Now(), enough: make(chan struct{}), wanted: wanted, ops: make(map[string][]operation), count: make(map[kind]int)},
		t:       t, role: newRole(), inspector: newClient(t, etcd[0]), quiet: make(chan struct{}),
	}
	for i := range r.links {
		for _, e := range etcd {
			r.links[i] = append(r.links[i], &link{address: e.Endpoint()})
		}
	}
	return r
}

// id returns the n-th id, from 0.
func id(n int) string { return fmt.Sprintf("%06d", n) }

// oldest returns the number of the oldest id that events arrive for: some six deliveries of each get ErrDone.
func (r *run) oldest() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[skipped] / 6
}

// pick returns the id of the next event.
func (r *run) pick() string { return id(r.oldest() + rand.IntN(liveIDs)) }

// work runs the claimers until there are enough operations, then calls repair and ends all deliveries, waits
// until no claim lists an id, and stops the claimers. It returns the claims that are
// left after maxWait, or "".
func (r *run) work(maxWait time.Duration, repair func()) (left string) {
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
	running.Go(func() { r.forget(ctx) })
	select {
	case <-r.enough:
	case <-ctx.Done():
	}
	repair()
	r.ending.Store(true)
	cancel()
	left = r.claimsLeft(maxWait)
	close(r.quiet)
	running.Wait()
	return left
}

// forget forgets ids, one after the other, until ctx ends. Each may be done or not.
func (r *run) forget(ctx context.Context) {
	role := lookup.Role{Client: etcd.New(r.inspector, slog.New(slog.DiscardHandler)), Prefix: "/service/" + r.role + "/", Timeout: maxWait}
	for pause(ctx, between(0, 100*time.Millisecond)) {
		id, call := r.pick(), r.now()
		answers, err := role.Forget(r.t.Context(), id)
		if err != nil {
			r.t.Errorf("forget id %s: %v", id, err)
		} else if answers[0].State == lookup.Forgotten {
			r.add(id, operation{kind: forgotten, worker: (claimers + 1) * workers, call: call, returns: r.now()})
		}
	}
}

// claimsLeft waits until no claim lists an id. It returns the claims that are left
// after maxWait, or "".
func (r *run) claimsLeft(maxWait time.Duration) string {
	ctx, cancel := context.WithTimeout(r.t.Context(), maxWait)
	defer cancel()
	for {
		resp, err := r.inspector.Get(ctx, "/service/"+r.role+"/claim/", clientv3.WithPrefix())
		if err == nil && len(resp.Kvs) == 0 {
			return ""
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Sprintf("claims are left (%v): %v", err, resp)
		}
	}
}

// brokenType is a type of events that only the claimer whose client may be broken handles.
const brokenType = "broken"

// live runs one process. When ctx ends, no more events arrive, and the process stops
// or crashes.
func (r *run) live(ctx context.Context, claimer int) {
	p := int(r.processes.Add(1))
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil)).With("process", p)
	server := etcd.Server{}
	for _, l := range r.links[claimer] {
		server.Endpoints = append(server.Endpoints, l.address)
	}
	client, err := etcd.Dial(ctx, server, log)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer client.Close()
	var types []string
	if r.wrap != nil && claimer == 0 {
		types = []string{brokenType}
		r.wrap(client.Raw)
	}
	store := claim.NewEtcd(client, claim.Options{Role: r.role, Types: types, TTL: ttl, Window: time.Hour, MaxIDs: 1 << 20, CloseTimeout: time.Second, Log: log})
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

// askAgain claims each id once more in a process that has just started.
func (r *run) askAgain(etcd *stack.Etcd) {
	p := start(r.t, etcd, claim.Options{Role: r.role, Window: time.Hour})
	w := &worker{run: r, claims: p.Etcd, process: int(r.processes.Load()) + 1, number: claimers * workers}
	for i := range r.oldest() + liveIDs {
		call := r.now()
		c, err := p.claim(id(i))
		if h := w.answered(id(i), call, c, err); h != nil {
			w.release(h)
		} else if !errors.Is(err, claim.ErrDone) {
			r.t.Errorf("id %s: %v", id(i), err)
		}
	}
}
