package claim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// commits is what a group commits, and holds it to what etcd takes.
type commits struct {
	t    *testing.T
	gate chan struct{}          // if not nil, a commit takes until it is closed
	take func(batch []*request) // if not nil, what a commit does
	mu   sync.Mutex
	log  [][]string // the ids of each commit
	now  int        // commits in flight
	most int
}

func (c *commits) commit(batch []*request) {
	ids := make([]string, len(batch))
	for i, r := range batch {
		ids[i] = r.id
	}
	c.mu.Lock()
	c.log = append(c.log, ids)
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	if len(batch) == 0 || len(batch) > 120 {
		c.t.Errorf("%d ids in a transaction", len(batch))
	}
	if unique := slices.Compact(slices.Sorted(slices.Values(ids))); len(unique) != len(ids) {
		c.t.Errorf("a transaction has an id twice: %v", ids)
	}
	if c.gate != nil {
		<-c.gate
	}
	if c.take != nil {
		c.take(batch)
	}
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	for _, r := range batch {
		r.finish()
	}
}

// ask has the group commit ids, one caller for each, and returns when all of
// them wait or are answered.
func ask(g *group, callers *sync.WaitGroup, ids ...string) {
	for _, id := range ids {
		callers.Go(func() { g.do(&request{id: id}) })
		synctest.Wait()
	}
}

// idle fails if a group that is not used keeps anything.
func idle(t *testing.T, g *group) {
	t.Helper()
	g.wg.Wait()
	if g.flying != 0 || len(g.waiting) != 0 {
		t.Errorf("%d commits in flight and %d requests waiting when all are answered", g.flying, len(g.waiting))
	}
	for _, r := range g.waiting[:cap(g.waiting)] {
		if r != nil {
			t.Error("a request that was answered is kept in memory")
			return
		}
	}
}

func numbers(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	return ids
}

func TestGroupAloneGoesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &commits{t: t}
		g := &group{commit: c.commit, parallel: 2}
		begin := time.Now()
		for _, id := range []string{"a", "b", "a"} {
			g.do(&request{id: id})
		}
		if diff := cmp.Diff([][]string{{"a"}, {"b"}, {"a"}}, c.log); diff != "" || time.Since(begin) > 0 {
			t.Errorf("after %v (-want +got):\n%s", time.Since(begin), diff)
		}
		idle(t, g)
	})
}

func TestGroupGathersInFlight(t *testing.T) {
	tests := map[string]struct {
		parallel int
		ids      []string // that come while as many commits are in flight
		want     []int    // sizes of the commits after that, in any order
	}{
		"few":          {1, numbers(3), []int{3}},
		"as many":      {1, numbers(120), []int{120}},
		"one too many": {1, numbers(121), []int{120, 1}},
		"many":         {1, numbers(300), []int{120, 120, 60}},
		"two at once":  {2, numbers(300), []int{120, 120, 60}},
		"all the same": {1, slices.Repeat([]string{"a"}, 4), []int{1, 1, 1, 1}},
		"some twice":   {1, []string{"a", "b", "a", "c", "b", "a"}, []int{3, 2, 1}},
		"many twice":   {1, slices.Concat(numbers(130), numbers(130)), []int{120, 120, 20}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &commits{t: t, gate: make(chan struct{})}
				g := &group{commit: c.commit, parallel: tt.parallel}
				var callers sync.WaitGroup
				for n := range tt.parallel {
					ask(g, &callers, fmt.Sprint("first ", n))
				}
				ask(g, &callers, tt.ids...)
				if len(c.log) != tt.parallel {
					t.Fatalf("%d commits are in flight, want %d", len(c.log), tt.parallel)
				}
				close(c.gate)
				callers.Wait()
				idle(t, g)
				var sizes []int
				var all []string
				for _, ids := range c.log[tt.parallel:] {
					sizes = append(sizes, len(ids))
					all = append(all, ids...)
				}
				slices.Sort(sizes)
				slices.Sort(tt.want)
				slices.Sort(all)
				slices.Sort(tt.ids)
				if !slices.Equal(sizes, tt.want) || !slices.Equal(all, tt.ids) || c.most > tt.parallel {
					t.Errorf("commits of %v ids, up to %d at once; want %v, %d", sizes, c.most, tt.want, tt.parallel)
				}
			})
		})
	}
}

// Who comes first goes first: a copy waits for the commit before it, but does
// not hold up those behind it.
func TestGroupKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &commits{t: t, gate: make(chan struct{})}
		g := &group{commit: c.commit, parallel: 1}
		var callers sync.WaitGroup
		ask(g, &callers, "x", "a", "a", "b", "a", "c", "b")
		close(c.gate)
		callers.Wait()
		if diff := cmp.Diff([][]string{{"x"}, {"a", "b", "c"}, {"a", "b"}, {"a"}}, c.log); diff != "" {
			t.Errorf("commits (-want +got):\n%s", diff)
		}
		idle(t, g)
	})
}

// Everybody gets the answer to what they asked.
func TestGroupAnswers(t *testing.T) {
	errOdd := errors.New("odd")
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 2))
				var drawing sync.Mutex
				draw := func(n int) int {
					drawing.Lock()
					defer drawing.Unlock()
					return rnd.IntN(n)
				}
				parallel, distinct := 1+draw(4), 1+draw(500)
				c := &commits{t: t}
				c.take = func(batch []*request) {
					<-time.After(time.Duration(1+draw(10)) * time.Millisecond)
					for _, r := range batch {
						r.answer.Grant.ID = r.id
						if n, _ := strconv.Atoi(r.id); n%2 == 1 {
							r.err = errOdd
						}
					}
				}
				g := &group{commit: c.commit, parallel: parallel}
				var callers sync.WaitGroup
				const requests = 1000
				for range requests {
					callers.Go(func() {
						<-time.After(time.Duration(1+draw(30)) * time.Millisecond)
						n := draw(distinct)
						r := &request{id: strconv.Itoa(n)}
						g.do(r)
						if r.answer.Grant.ID != r.id || (r.err == errOdd) != (n%2 == 1) {
							t.Errorf("%s got the answer %+v, %v", r.id, r.answer, r.err)
						}
					})
				}
				callers.Wait()
				committed := 0
				for _, ids := range c.log {
					committed += len(ids)
				}
				if committed != requests || c.most > parallel {
					t.Errorf("%d of %d requests were committed, up to %d commits at once of %d", committed, requests, c.most, parallel)
				}
				idle(t, g)
			})
		})
	}
}
