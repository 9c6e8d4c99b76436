package claim

import (
	"runtime"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// groupSize is how many ids go into a transaction. etcd takes 128
	// operations by default, counted with those of a nested transaction on top.
	groupSize = 120
	// parallel is how many transactions of a kind, claims or completes, are in
	// flight: enough that etcd always has one to work on.
	parallel = 2
)

// request is one id's part of a transaction. Whoever asks waits for done.
type request struct {
	id    string
	grant Grant // of a complete

	answer Answer           // to a claim
	lease  clientv3.LeaseID // of the record, if it is done
	err    error
	done   chan struct{}
}

// finish answers the request.
func (r *request) finish() { r.done <- struct{}{} }

// group commits the requests of many callers together: while transactions are
// in flight, what arrives gathers for the next. There is no timer; a request
// that comes alone goes at once.
type group struct {
	commit   func([]*request) // finishes every request it is given
	parallel int              // transactions in flight
	wg       sync.WaitGroup

	mu      sync.Mutex
	waiting []*request
	flying  int
}

// do has r committed and waits for its answer.
func (g *group) do(r *request) {
	r.done = make(chan struct{}, 1)
	g.mu.Lock()
	g.waiting = append(g.waiting, r)
	if g.flying < g.parallel {
		g.flying++
		g.wg.Go(g.fly)
	}
	g.mu.Unlock()
	<-r.done
}

// fly commits until nobody waits.
func (g *group) fly() {
	for {
		runtime.Gosched() // whoever else is about to ask goes first, and into the same batch
		batch := g.take()
		if batch == nil {
			return
		}
		g.commit(batch)
	}
}

// take returns the next requests, no id twice: etcd refuses a transaction that
// writes a key twice. It returns nil when there is none.
func (g *group) take() []*request {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.flying--
		return nil
	}
	batch := make([]*request, 0, min(len(g.waiting), groupSize))
	ids := make(map[string]struct{}, cap(batch))
	rest := g.waiting[:0]
	for i, r := range g.waiting {
		if len(batch) == groupSize {
			rest = append(rest, g.waiting[i:]...)
			break
		}
		if _, twice := ids[r.id]; twice {
			rest = append(rest, r)
			continue
		}
		ids[r.id] = struct{}{}
		batch = append(batch, r)
	}
	clear(g.waiting[len(rest):])
	g.waiting = rest
	return batch
}
