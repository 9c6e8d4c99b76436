package claim

import (
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
	faults   int      // maximum in a run
	mild     bool     // no crashes, suspensions or lost channels, which lead to the most states
	broken   string   // the broken variant; "": none
}

func (s scenario) ids() []string { return slices.Compact(slices.Sorted(slices.Values(s.messages))) }

// symmetries returns 2 if the ids a and b can be exchanged, and otherwise 1.
func (s scenario) symmetries() int {
	if s.first == "AA" && slices.Equal(s.messages, []string{"a", "b"}) {
		return 2
	}
	return 1
}

// TestExplore runs the real claimers of two processes on a simulated etcd through
// every possible order of steps, with a limited number of faults per run: a write that
// is sent twice, one copy of which arrives late; a lost answer; a crash; a suspension;
// a closed watch; a change of leader; the end of a window; a forgotten id; a lost channel; a failing
// handler. A lease expires only after its process has crashed or has suspended the
// session. A write, a watch event, a late copy and an expiry may take any time.
//
// A run follows a list of choices from the start, and ends early in a state that was
// explored before. States are compared in a canonical form, see hasher. Every state is
// checked against the invariants of explore_check_test.go.
//
// With two faults of any kind (-explore.faults=2) two messages of one id have four million
// states, and take about eight minutes. Two ids in one batch have 20 million, and take over
// an hour.
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
		"two ids, one of them wanted by both": {messages: []string{"a", "b", "a"}, first: "AAB", faults: 0},
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
			t.Logf("up to %d faults: %d runs, %d states, %d ends in %v", s.faults, x.runs, len(x.seen), x.ends, time.Since(began))
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
			t.Logf("after %d runs, %d states: %s", x.runs, len(x.seen), x.violation)
		})
	}
}

// explorer searches first all states that are reachable without a fault, then those
// that are reachable after one fault in each of these states, and so on. Between
// faults it searches depth first and replays each path from the start.
type explorer struct {
	scenario
	seen      map[[16]byte]struct{}
	nodes     []node
	frontier  []node   // each node is a state and a fault that happens in it
	prefix    []step   // the steps up to the last fault
	path      []choice // the choices after that fault
	hasher    hasher
	states    statePool
	runs      int
	ends      int
	violation string
}

// node is a state that was found: its predecessor and the step that led from there to it.
type node struct {
	from int32 // index of the predecessor
	step step
}

// choice is a state of the path: the steps that are enabled in it, and the one being
// tried.
type choice struct {
	node  int32
	steps []step
	taken int
}

func explore(s scenario) *explorer {
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	x := &explorer{scenario: s, seen: make(map[[16]byte]struct{}), hasher: newHasher()}
	x.states.ids = s.ids()
	x.branch(node{from: -1}, s.faults > 0)
	for level := 1; level <= s.faults; level++ {
		starts := x.frontier
		x.frontier = nil
		for _, start := range starts {
			x.branch(start, level < s.faults)
		}
	}
	return x
}

// branch explores all runs after a fault, up to the next fault. If collect is true, it
// adds the faults that can happen to the frontier.
func (x *explorer) branch(start node, collect bool) {
	x.prefix, x.path = x.prefix[:0], x.path[:0]
	for n := start; n.from >= 0; n = x.nodes[n.from] {
		x.prefix = append(x.prefix, n.step)
	}
	slices.Reverse(x.prefix)
	for more := true; more && x.violation == ""; more = x.next() {
		x.run(start, collect)
		x.runs++
	}
}

// next advances to the next path. It returns false after the last one.
func (x *explorer) next() bool {
	for len(x.path) > 0 {
		last := &x.path[len(x.path)-1]
		if last.taken++; last.taken < len(last.steps) {
			return true
		}
		x.path = x.path[:len(x.path)-1]
	}
	return false
}

// run replays the path and continues from its end until it reaches a known state or an
// end.
func (x *explorer) run(start node, collect bool) {
	x.states.reset()
	r := &run{scenario: x.scenario, explorer: x}
	r.begin()
	for _, s := range x.prefix {
		r.take(s)
	}
	for _, c := range x.path {
		start = node{c.node, c.steps[c.taken]}
		r.take(start.step)
	}
	for {
		if r.check(); r.violation == "" && !x.extend(r, start, collect) && r.violation == "" {
			return
		}
		if r.violation != "" {
			x.violation = fmt.Sprintf("%s\nafter %v", r.violation, x.trace(start))
			return
		}
		c := x.path[len(x.path)-1]
		start = node{c.node, c.steps[0]}
		r.take(start.step)
	}
}

// extend adds the state of a run to the path, unless the state is known or an end.
func (x *explorer) extend(r *run, from node, collect bool) bool {
	state := x.hasher.hash(r)
	if _, known := x.seen[state]; known {
		return false
	}
	x.seen[state] = struct{}{}
	this := int32(len(x.nodes))
	x.nodes = append(x.nodes, from)
	steps, faults := r.enabled(collect)
	for _, fault := range faults {
		x.frontier = append(x.frontier, node{this, fault})
	}
	if len(steps) == 0 {
		x.ends++
		r.checkEnd()
		return false
	}
	x.path = append(x.path, choice{this, steps, 0})
	return true
}

// trace lists the steps that lead to a state.
func (x *explorer) trace(n node) (steps []step) {
	for ; n.from >= 0; n = x.nodes[n.from] {
		steps = append(steps, n.step)
	}
	slices.Reverse(steps)
	return steps
}
