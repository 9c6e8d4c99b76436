package claim

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Keeper is the claims of one process: it asks the store at most once at a
// time for an id, waits while another process has it, and answers for ids that
// it knows to be done without asking.
type Keeper struct {
	store Store
	cache *Cache

	mu      sync.Mutex
	flights map[string]*flight
}

// flight is an id that one delivery of this process is busy with.
type flight struct {
	landed chan struct{} // closed when it no longer is
	done   bool          // the id is done; set before landed is closed
}

// NewKeeper returns the claims of this process.
func NewKeeper(store Store, cache *Cache) *Keeper {
	return &Keeper{store: store, cache: cache, flights: make(map[string]*flight)}
}

// Claim waits until id is the caller's. ErrDone: it has been processed. Any
// other error: ctx or the store's life has ended, and nothing is held.
//
// What the store is asked is seen through even when ctx ends meanwhile: a
// claim that nobody holds would block all other processes.
func (k *Keeper) Claim(ctx context.Context, id string) (*Claim, error) {
	if k.cache.Has(id) {
		return nil, ErrDone
	}
	for {
		f, ours := k.board(id)
		if ours {
			return k.ask(ctx, id, f)
		}
		select {
		case <-f.landed:
			if f.done {
				return nil, ErrDone
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// board returns the flight of an id, and whether the caller is its pilot.
func (k *Keeper) board(id string) (f *flight, ours bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f, ok := k.flights[id]; ok {
		return f, false
	}
	f = &flight{landed: make(chan struct{})}
	k.flights[id] = f
	return f, true
}

func (k *Keeper) land(id string, f *flight, done bool) {
	k.mu.Lock()
	delete(k.flights, id)
	k.mu.Unlock()
	f.done = done
	close(f.landed)
}

// ask is for the pilot of f alone.
func (k *Keeper) ask(ctx context.Context, id string, f *flight) (*Claim, error) {
	var wait *backoff.ExponentialBackOff
	for {
		answer, err := k.store.Claim(id)
		switch {
		case err != nil:
			k.land(id, f, false)
			return nil, err
		case answer.State == Done:
			k.cache.Add(id, answer.Life)
			k.land(id, f, true)
			return nil, ErrDone
		case answer.State == Granted:
			c := &Claim{Grant: answer.Grant, keeper: k, flight: f}
			if ctx.Err() != nil { // the delivery is gone: let another have it
				c.Release()
				return nil, context.Cause(ctx)
			}
			return c, nil
		}
		if wait == nil {
			wait = busyBackoff()
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			k.land(id, f, false)
			return nil, context.Cause(ctx)
		}
	}
}

// busyBackoff is how a process waits for another that has the id: quick
// handlers are found finished quickly, slow ones are asked for once a second.
func busyBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: 50 * time.Millisecond, Multiplier: 1.6, MaxInterval: time.Second, RandomizationFactor: 0.2,
	}
}

// Claim is an id that this process alone may work on. It ends with one call
// of Complete, Release or Abandon.
type Claim struct {
	Grant
	keeper *Keeper
	flight *flight
}

// Complete records that the work is done. ErrLost: another process has taken
// the claim meanwhile. Any other error: the store's life ended first.
func (c *Claim) Complete() error {
	k := c.keeper
	if k == nil {
		return nil
	}
	life, err := k.store.Complete(c.Grant)
	if err == nil {
		k.cache.Add(c.ID, life)
	}
	k.land(c.ID, c.flight, err == nil)
	return err
}

// Release gives the id back undone, to whoever asks next.
func (c *Claim) Release() error {
	k := c.keeper
	if k == nil {
		return nil
	}
	err := k.store.Release(c.Grant)
	k.land(c.ID, c.flight, false)
	return err
}

// Abandon is for a claim whose Held context has ended: it has gone with its
// session, or goes with it, and there is nothing to give back.
func (c *Claim) Abandon() {
	if c.keeper != nil {
		c.keeper.land(c.ID, c.flight, false)
	}
}

// Unchecked grants every id to everyone who asks: the service without etcd.
type Unchecked struct {
	Work context.Context // ends when handlers must stop
}

// Claim grants id.
func (u Unchecked) Claim(_ context.Context, id string) (*Claim, error) {
	return &Claim{Grant: Grant{ID: id, Held: u.Work}}, nil
}
