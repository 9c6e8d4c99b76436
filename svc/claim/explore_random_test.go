package claim

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Random runs with six ids and many faults keep the invariants of the exploration. At each revision a view
// that follows the changes, some at a time, equals one that is read from the keys, and Apply names the ids
// whose claims have changed, and those that records list.
func TestRandomRuns(t *testing.T) {
	revisions := 0
	for seed := range uint64(1000) {
		random := rand.New(rand.NewPCG(seed, 0))
		s := scenario{held: 6}
		for range 14 {
			s.messages = append(s.messages, string(rune('a'+random.IntN(6))))
		}
		slices.Sort(s.messages)
		x, follower, seen := newRun(s), newView(""), int64(0)
		follower.follows = true
		must := func(ok bool, format string, args ...any) {
			if !ok {
				x.fail(format, args...)
			}
			if x.violation != "" {
				t.Fatalf("run %d: %s\nafter %q", seed, x.violation, x.trace)
			}
		}
		for n, faults := 0, seed%20; ; n++ {
			steps := x.steps()
			if faults > 0 && (len(steps) == 0 || random.IntN(8) == 0) {
				steps = x.faults()
				faults--
			}
			if len(steps) == 0 {
				break
			}
			x.take(steps[random.IntN(len(steps))])
			x.check()
			must(n < 10_000, "no end")
			if x.etcd.revision == seen || random.IntN(3) == 0 {
				continue // later changes arrive together with this one
			}
			events, before, named, reader := slices.Concat(x.etcd.log[seen+1:]...), x.etcd.truth[seen], make(map[string]bool), newView("")
			x.unreadable(follower.Apply(events, func(id string, record *recordKey) { named[id] = record == nil || named[id] }))
			x.unreadable(reader.Apply(x.etcd.snapshot(), func(string, *recordKey) {}))
			single, windowEnded := x.etcd.revision == seen+1, slices.ContainsFunc(events, func(ch change) bool { return ch.Deleted && strings.HasPrefix(ch.Key, "window/") })
			seen = x.etcd.revision
			revisions++
			must(follower.done.living == reader.done.living, "%d ids are done to the follower, %d to the reader", follower.done.living, reader.done.living)
			must(reflect.DeepEqual(follower.sessions, reader.sessions), "the sessions are %v and %v", follower.sessions, reader.sessions)
			for id, want := range x.etcd.truth[seen] {
				a, b, rule := truthOf(follower, id).String(), truthOf(reader, id).String(), want.String()
				must(a == rule && b == rule, "%s is %q to the follower, %q to the reader, %q by the rule", id, a, b, rule)
				claims, is := named[id]
				changed := rule != before[id].String()
				must((is || !changed || windowEnded) && (changed || !claims || !single), "%s is named: %t, it was %q and is %q", id, is, before[id], rule)
			}
		}
		x.checkEnd()
		must(true, "")
	}
	t.Logf("%d revisions compared", revisions)
}
