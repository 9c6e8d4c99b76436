package claim_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/claim/claimtest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	claimtest.Contract(t, func(*testing.T) func() claimtest.Process {
		records := claimtest.NewRecords()
		return func() claimtest.Process {
			m := records.Open()
			return claimtest.Process{Store: m, Expire: func() { m.LoseSession(true) }}
		}
	})
}

// asked is a store that notes what it is asked, and holds a Keeper to what a
// Store may expect: one call at a time for an id.
type asked struct {
	claim.Store
	t      *testing.T
	answer chan struct{} // if not nil, no claim is answered until it is closed

	mu    sync.Mutex
	calls []string
	times []time.Time // of the claims
	busy  map[string]bool
}

func newAsked(t *testing.T, s claim.Store) *asked {
	return &asked{Store: s, t: t, busy: make(map[string]bool)}
}

func (s *asked) begin(call, id string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call+" "+id)
	if call == "claim" {
		s.times = append(s.times, time.Now())
	}
	if s.busy[id] {
		s.t.Errorf("two calls at once for %s: %v", id, s.calls)
	}
	s.busy[id] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy[id] = false
	}
}

func (s *asked) Claim(id string) (claim.Answer, error) {
	defer s.begin("claim", id)()
	if s.answer != nil {
		<-s.answer
	}
	return s.Store.Claim(id)
}

func (s *asked) Complete(g claim.Grant) (time.Duration, error) {
	defer s.begin("complete", g.ID)()
	return s.Store.Complete(g)
}

func (s *asked) Release(g claim.Grant) error {
	defer s.begin("release", g.ID)()
	return s.Store.Release(g)
}

func (s *asked) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.take()); diff != "" {
		t.Errorf("the store was asked (-want +got):\n%s", diff)
	}
}

// take returns what was asked since the last time.
func (s *asked) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// pauses returns the times between the claims.
func (s *asked) pauses() (pauses []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range len(s.times) - 1 {
		pauses = append(pauses, s.times[i+1].Sub(s.times[i]))
	}
	return pauses
}

func newKeeper(t *testing.T) (*claim.Keeper, *asked, *claimtest.Records) {
	records := claimtest.NewRecords()
	store := newAsked(t, records.Open())
	return claim.NewKeeper(store, claim.NewCache(1000, 0)), store, records
}

func mustClaim(t *testing.T, k *claim.Keeper, id string) *claim.Claim {
	t.Helper()
	c, err := k.Claim(t.Context(), id)
	if err != nil {
		t.Fatalf("claim of %s: %v", id, err)
	}
	return c
}

// outcome is what a call of Claim came to.
type outcome struct {
	*claim.Claim
	err error
}

// claiming calls Claim and returns when it waits, or has returned.
func claiming(ctx context.Context, k *claim.Keeper, id string) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		c, err := k.Claim(ctx, id)
		ended <- outcome{c, err}
	}()
	synctest.Wait()
	return ended
}

func mustWait(t *testing.T, ended <-chan outcome) {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-ended:
		t.Fatalf("claim did not wait: %v, %v", o.Claim, o.err)
	default:
	}
}

func mustEnd(t *testing.T, ended <-chan outcome) outcome {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-ended:
		return o
	default:
		t.Fatal("claim goes on waiting")
		return outcome{}
	}
}

func TestKeeperAsksOnceForADoneID(t *testing.T) {
	t.Run("done here", func(t *testing.T) {
		k, store, _ := newKeeper(t)
		if err := mustClaim(t, k, "1").Complete(); err != nil {
			t.Fatal(err)
		}
		store.expect(t, "claim 1", "complete 1")
		if _, err := k.Claim(t.Context(), "1"); !errors.Is(err, claim.ErrDone) {
			t.Error(err)
		}
		store.expect(t)
	})
	t.Run("done elsewhere", func(t *testing.T) {
		k, store, records := newKeeper(t)
		complete(t, records.Open(), "1")
		for range 2 {
			if _, err := k.Claim(t.Context(), "1"); !errors.Is(err, claim.ErrDone) {
				t.Error(err)
			}
		}
		store.expect(t, "claim 1")
	})
}

func complete(t *testing.T, s claim.Store, id string) {
	t.Helper()
	a, err := s.Claim(id)
	if err != nil || a.State != claim.Granted {
		t.Fatalf("claim of %s: %v, %v", id, a.State, err)
	}
	if _, err := s.Complete(a.Grant); err != nil {
		t.Fatal(err)
	}
}

// While a delivery of this process has an id, others of it ask nothing.
func TestKeeperInFlight(t *testing.T) {
	tests := map[string]struct {
		end  func(c *claim.Claim) error
		done bool     // for those who waited
		want []string // asked, with one who waited
	}{
		"completed": {(*claim.Claim).Complete, true, []string{"complete 1"}},
		"released":  {(*claim.Claim).Release, false, []string{"release 1", "claim 1"}},
		"abandoned": {func(c *claim.Claim) error { c.Abandon(); return nil }, false, []string{"claim 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, store, _ := newKeeper(t)
				c := mustClaim(t, k, "1")
				waits := claiming(t.Context(), k, "1")
				ctx, cancel := context.WithCancelCause(t.Context())
				leaves := claiming(ctx, k, "1")
				mustWait(t, waits)
				cancel(errors.New("the channel is gone"))
				if o := mustEnd(t, leaves); o.err == nil || o.err.Error() != "the channel is gone" {
					t.Errorf("who leaves is told %v", o.err)
				}
				store.expect(t, "claim 1")
				if err := tt.end(c); err != nil {
					t.Fatal(err)
				}
				o := mustEnd(t, waits)
				if errors.Is(o.err, claim.ErrDone) != tt.done || (o.err == nil) == tt.done {
					t.Errorf("who waits is told %v", o.err)
				}
				store.expect(t, tt.want...)
			})
		})
	}
}

// Of many that wait for an id that is released, one at a time gets it.
func TestKeeperGrantsOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, store, _ := newKeeper(t)
		ended := make(chan outcome, 10)
		for range cap(ended) {
			go func() {
				c, err := k.Claim(t.Context(), "1")
				ended <- outcome{c, err}
			}()
		}
		for range cap(ended) - 1 {
			synctest.Wait()
			if len(ended) != 1 {
				t.Fatalf("%d were granted at once", len(ended))
			}
			if err := (<-ended).Release(); err != nil {
				t.Fatal(err)
			}
		}
		if err := (<-ended).Complete(); err != nil {
			t.Fatal(err)
		}
		if claims := len(store.pauses()) + 1; claims != 10 {
			t.Errorf("the store was asked %d times for 10 grants", claims)
		}
	})
}

func TestKeeperWaitsForAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, store, records := newKeeper(t)
		other := records.Open()
		a, err := other.Claim("1")
		if err != nil {
			t.Fatal(err)
		}
		waits := claiming(t.Context(), k, "1")
		<-time.After(30 * time.Second)
		mustWait(t, waits)
		for i, pause := range store.pauses() {
			low, high := 40*time.Millisecond, 1200*time.Millisecond
			if i == 0 {
				high = 60 * time.Millisecond
			}
			if i > 8 {
				low = 800 * time.Millisecond
			}
			if pause < low || pause > high {
				t.Errorf("pause %d is %v, want %v to %v", i, pause, low, high)
			}
		}
		if _, err := other.Complete(a.Grant); err != nil {
			t.Fatal(err)
		}
		<-time.After(1200 * time.Millisecond)
		if o := mustEnd(t, waits); !errors.Is(o.err, claim.ErrDone) {
			t.Error(o.err)
		}
	})
}

func TestKeeperLeavesAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, store, records := newKeeper(t)
		other := records.Open()
		a, err := other.Claim("1")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		first := claiming(ctx, k, "1")
		second := claiming(t.Context(), k, "1")
		cancel(errors.New("the channel is gone"))
		if o := mustEnd(t, first); o.err == nil || o.err.Error() != "the channel is gone" {
			t.Errorf("who leaves is told %v", o.err)
		}
		mustWait(t, second)
		store.expect(t, "claim 1", "claim 1") // the second asks now
		if err := other.Release(a.Grant); err != nil {
			t.Fatal(err)
		}
		<-time.After(60 * time.Millisecond)
		if o := mustEnd(t, second); o.err != nil {
			t.Error(o.err)
		}
	})
}

// A claim that is asked for is seen through though nobody waits for it any
// more: held by nobody, it would block all others.
func TestKeeperSeesThroughWhatItAsked(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprint("done ", done), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, store, records := newKeeper(t)
				if done {
					complete(t, records.Open(), "1")
				}
				store.answer = make(chan struct{})
				ctx, cancel := context.WithCancelCause(t.Context())
				ended := claiming(ctx, k, "1")
				cancel(errors.New("the channel is gone"))
				store.expect(t, "claim 1")
				close(store.answer)
				o := mustEnd(t, ended)
				if done {
					if !errors.Is(o.err, claim.ErrDone) {
						t.Error(o.err)
					}
					store.expect(t)
					return
				}
				if o.err == nil || o.err.Error() != "the channel is gone" {
					t.Error(o.err)
				}
				store.expect(t, "release 1")
				if a, err := records.Open().Claim("1"); err != nil || a.State != claim.Granted {
					t.Errorf("another process is told %v, %v", a.State, err)
				}
			})
		})
	}
}

func TestKeeperCompletesLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := claimtest.NewRecords()
		session := records.Open()
		k := claim.NewKeeper(session, claim.NewCache(10, 0))
		c := mustClaim(t, k, "1")
		waits := claiming(t.Context(), k, "1")
		session.LoseSession(true)
		other := records.Open()
		a, err := other.Claim("1")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Complete(); !errors.Is(err, claim.ErrLost) {
			t.Errorf("complete of a lost claim: %v", err)
		}
		mustWait(t, waits) // the other may still fail
		if err := other.Release(a.Grant); err != nil {
			t.Fatal(err)
		}
		<-time.After(60 * time.Millisecond)
		if o := mustEnd(t, waits); o.err != nil || o.Token <= a.Grant.Token {
			t.Errorf("who waits is told %v, %v", o.Claim, o.err)
		}
	})
}

var errEnded = errors.New("the store's life has ended")

// ending is a store whose life can end.
type ending struct {
	claim.Store
	ended bool
}

func (s *ending) Claim(id string) (claim.Answer, error) {
	if s.ended {
		return claim.Answer{}, errEnded
	}
	return s.Store.Claim(id)
}

func (s *ending) Complete(g claim.Grant) (time.Duration, error) {
	if s.ended {
		return 0, errEnded
	}
	return s.Store.Complete(g)
}

func (s *ending) Release(g claim.Grant) error {
	if s.ended {
		return errEnded
	}
	return s.Store.Release(g)
}

// The end of the store is told to everybody, and nobody hangs.
func TestKeeperOfAnEndedStore(t *testing.T) {
	tests := map[string]func(c *claim.Claim) error{
		"complete": (*claim.Claim).Complete,
		"release":  (*claim.Claim).Release,
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &ending{Store: claimtest.NewRecords().Open()}
				k := claim.NewKeeper(store, claim.NewCache(10, 0))
				c := mustClaim(t, k, "1")
				waits := claiming(t.Context(), k, "1")
				store.ended = true
				if err := end(c); !errors.Is(err, errEnded) {
					t.Error(err)
				}
				if o := mustEnd(t, waits); !errors.Is(o.err, errEnded) {
					t.Errorf("who waits is told %v", o.err)
				}
				for _, id := range []string{"1", "2"} {
					if o := mustEnd(t, claiming(t.Context(), k, id)); !errors.Is(o.err, errEnded) {
						t.Errorf("the next for %s is told %v", id, o.err)
					}
				}
			})
		})
	}
}

// mortal is a store whose records do not last.
type mortal struct {
	claim.Store
	life time.Duration
}

func (s mortal) Claim(id string) (claim.Answer, error) {
	a, err := s.Store.Claim(id)
	a.Life = s.life
	return a, err
}

func (s mortal) Complete(g claim.Grant) (time.Duration, error) {
	_, err := s.Store.Complete(g)
	return s.life, err
}

// What is known to be done is asked for again when the record may be gone.
func TestKeeperForgetsWithTheRecord(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		t.Run(fmt.Sprint("done elsewhere ", elsewhere), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				records := claimtest.NewRecords()
				store := newAsked(t, mortal{records.Open(), time.Hour})
				k := claim.NewKeeper(store, claim.NewCache(10, time.Hour))
				if elsewhere {
					complete(t, records.Open(), "1")
					k.Claim(t.Context(), "1")
				} else {
					mustClaim(t, k, "1").Complete()
				}
				store.take()
				<-time.After(50 * time.Minute)
				if _, err := k.Claim(t.Context(), "1"); !errors.Is(err, claim.ErrDone) {
					t.Error(err)
				}
				store.expect(t)
				<-time.After(10 * time.Minute)
				if _, err := k.Claim(t.Context(), "1"); !errors.Is(err, claim.ErrDone) {
					t.Error(err)
				}
				store.expect(t, "claim 1")
			})
		})
	}
}

func TestUncheckedGrantsEverything(t *testing.T) {
	work, cancel := context.WithCancel(t.Context())
	u := claim.Unchecked{Work: work}
	for range 2 {
		c, err := u.Claim(t.Context(), "1")
		if err != nil || c.ID != "1" || c.Token != 0 || c.Held.Err() != nil {
			t.Fatalf("granted %+v, %v", c, err)
		}
		if err := errors.Join(c.Complete(), c.Release()); err != nil {
			t.Error(err)
		}
		c.Abandon()
	}
	c, _ := u.Claim(t.Context(), "1")
	cancel()
	if c.Held.Err() == nil {
		t.Error("the work outlives its context")
	}
}

// Processes that lose their sessions, deliveries that go, copies, work that
// fails: each id is recorded as done once, and nobody waits for ever.
func TestKeepersTogether(t *testing.T) {
	const processes, ids, copies = 4, 60, 3
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { keepersTogether(t, seed, processes, ids, copies) })
		})
	}
}

func keepersTogether(t *testing.T, seed uint64, processes, ids, copies int) {
	records := claimtest.NewRecords()
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 0))
	chance := func(percent int) bool {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(100) < percent
	}
	completed := make(map[string]int)
	var tokens []int64 // of all grants that are not the same claim's
	var deliveries, chaos sync.WaitGroup
	over := make(chan struct{})
	for range processes {
		session := records.Open()
		k := claim.NewKeeper(newAsked(t, session), claim.NewCache(20, 0))
		chaos.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(100 * time.Millisecond):
					session.LoseSession(chance(50))
				}
			}
		})
		for n := range ids * copies {
			id := fmt.Sprint(n % ids)
			deliveries.Go(func() {
				for !see(t, k, id, chance, func(token int64) {
					mu.Lock()
					defer mu.Unlock()
					completed[id]++
					tokens = append(tokens, token)
				}) {
				}
			})
		}
	}
	deliveries.Wait()
	close(over)
	chaos.Wait()
	for id, times := range completed {
		if times != 1 {
			t.Errorf("id %s was completed %d times", id, times)
		}
	}
	if len(completed) != ids {
		t.Errorf("%d ids were completed, want %d", len(completed), ids)
	}
	slices.Sort(tokens)
	if unique := slices.Compact(slices.Clone(tokens)); len(unique) != len(tokens) {
		t.Error("two ids were completed with the same token")
	}
}

// see is one delivery of an id. It reports whether the id is done; otherwise
// the delivery comes again.
func see(t *testing.T, k *claim.Keeper, id string, chance func(percent int) bool, completed func(token int64)) bool {
	ctx := t.Context()
	if chance(20) { // the channel goes
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
	}
	c, err := k.Claim(ctx, id)
	if errors.Is(err, claim.ErrDone) {
		return true
	}
	if err != nil {
		return false
	}
	select {
	case <-time.After(30 * time.Millisecond):
	case <-c.Held.Done():
		c.Abandon()
		return false
	}
	if chance(20) {
		if err := c.Release(); err != nil {
			t.Error(err)
		}
		return false
	}
	switch err := c.Complete(); {
	case err == nil:
		completed(c.Token)
		return true
	case !errors.Is(err, claim.ErrLost):
		t.Error(err)
	}
	return false
}
