package claim

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

var exploreFaults = flag.Int("explore.faults", -1, "faults in a run of TestExplore; -1: as many as fit into half a minute")

// scenario configures an exploration.
type scenario struct {
	messages []string // ids
	first    string   // the process that each message is delivered to first; empty: any
	held     int      // deliveries of a process at once; 0: two
	faults   int      // maximum in a run
	mild     bool     // no crashes, suspensions or lost channels, which lead to the most states
	broken   string   // the broken variant; "": none
}

// TestExplore runs the real claimers of two processes on a simulated etcd through
// every possible order of steps, with a limited number of faults per run: a write that
// is sent twice, one copy of which arrives late; a lost answer; a crash; a suspension;
// a closed watch; a change of leader; the end of a window; a forgotten id; a lost channel; a failing
// handler. A lease expires only after its process has crashed or has suspended the
// session. A write, a watch event, a late copy and an expiry may take any time.
//
// A run replays steps from the start, and ends early in a state that was
// explored before. States are compared in a canonical form, see hasher. Every state is
// checked against the invariants of explore_check_test.go.
//
// With two faults of any kind (-explore.faults=2) two messages of one id have millions of
// states, and two ids in one batch many more. TestRandomRuns takes more ids and faults, in a sample of orders.
//
// Three restrictions keep the number of states small. The answer to a write arrives at
// once, or when the view has seen everything up to the write, or not at all. A process
// that crashes starts again at once, though its view and its first delivery may be
// arbitrarily late. A process that can only apply a revision or write does so before
// the others continue: see isLocal.
func TestExplore(t *testing.T) {
	for name, s := range map[string]scenario{
		"two messages of one id":              {messages: []string{"a", "a"}, faults: 1},
		"mild faults":                         {messages: []string{"a", "a"}, faults: 3, mild: true},
		"two ids in one batch":                {messages: []string{"a", "b"}, first: "AA", faults: 1},
		"two ids, one of them wanted by both": {messages: []string{"a", "b", "a"}, first: "AAB"},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() {
				s.faults = 0
			}
			if *exploreFaults >= 0 {
				s.faults = *exploreFaults
			}
			began := time.Now()
			x := explore(s)
			t.Logf("up to %d faults: %d runs, %d states, %d ends in %v", s.faults, x.runs, len(x.states), x.ends, time.Since(began))
			if x.violation != "" {
				t.Error(x.violation)
			}
		})
	}
}

// The exploration detects a broken rule.
func TestExploreNotices(t *testing.T) {
	for _, broken := range []string{
		"no condition on the version", "the newest claim owns", "ids are taken off before the record",
	} {
		t.Run(broken, func(t *testing.T) {
			x := explore(scenario{messages: []string{"a", "a"}, faults: 1, broken: broken})
			if x.violation == "" {
				t.Error("no violation was found")
			}
			t.Logf("after %d runs, %d states: %s", x.runs, len(x.states), x.violation)
		})
	}
}

// explorer searches first all states that are reachable without a fault, then those
// that are reachable after one fault in each of these states, and so on. Between
// faults it searches depth first.
type explorer struct {
	scenario
	hasher
	seen      map[[sha256.Size]byte]bool
	states    []branch // how each was reached first
	todo      []branch // to be followed
	runs      int
	ends      int
	violation string
}

// branch is a step from a state. It is known by its number among the steps, or the faults,
// that are possible in that state.
type branch struct {
	from  int32 // index of the state; -1: the initial state follows
	fault bool
	n     uint8
}

func explore(s scenario) *explorer {
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	x := &explorer{scenario: s, seen: make(map[[sha256.Size]byte]bool), todo: []branch{{from: -1}}}
	for level := 0; level <= s.faults; level++ {
		var faults []branch
		for len(x.todo) > 0 && x.violation == "" {
			last := len(x.todo) - 1
			b := x.todo[last]
			x.todo = x.todo[:last]
			faults = append(faults, x.follow(b, level < s.faults)...)
		}
		x.todo = faults
	}
	return x
}

// follow runs from the start through a branch to a known state or an end. Other branches on that way
// are to be followed later. It returns the faults that can happen on it, if they are wanted.
func (x *explorer) follow(b branch, withFaults bool) (faults []branch) {
	x.runs++
	r := x.replay(b)
	for {
		if r.check(); r.violation == "" && !x.add(r, b) {
			return faults
		}
		from := int32(len(x.states) - 1)
		steps := r.steps()
		if len(steps) == 0 {
			x.ends++
			r.checkEnd()
		}
		if r.violation != "" {
			x.violation = fmt.Sprintf("%s\nafter %q", r.violation, r.trace)
			return nil
		}
		for n := 1; n < len(steps); n++ {
			x.todo = append(x.todo, branch{from, false, uint8(n)})
		}
		if withFaults {
			for n := range r.faults() {
				faults = append(faults, branch{from, true, uint8(n)})
			}
		}
		if len(steps) == 0 {
			return faults
		}
		b = branch{from, false, 0}
		r.take(steps[0])
	}
}

// add adds the state of a run to those that are known. It reports whether it is new.
func (x *explorer) add(r *run, b branch) bool {
	hash := x.hash(r)
	if x.seen[hash] {
		return false
	}
	x.seen[hash] = true
	x.states = append(x.states, b)
	return true
}

// replay returns a run in the state that a branch leads to.
func (x *explorer) replay(b branch) *run {
	var way []branch
	for ; b.from >= 0; b = x.states[b.from] {
		way = append(way, b)
	}
	r := newRun(x.scenario)
	for _, b := range slices.Backward(way) {
		if b.fault {
			r.take(r.faults()[b.n])
		} else {
			r.take(r.steps()[b.n])
		}
	}
	return r
}
