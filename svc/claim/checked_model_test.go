package claim_test

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is one entry in the history of an id. It took effect at one instant
// between call and returns. An operation with an unknown outcome took effect at one
// instant after call, or never.
type operation struct {
	kind    kind
	process int   // one life of a claimer
	worker  int   // handles one delivery at a time
	hold    int   // number of the grant that the operation is or belongs to; 0: none
	token   int64 // of a grant; otherwise 0
	call    time.Duration
	returns time.Duration
}

const unknown = time.Duration(math.MaxInt64) // returns of an operation that got no answer

type kind string

const (
	granted   kind = "granted"  // by Claim or Reclaim
	skipped   kind = "ErrDone"  // from Claim or Reclaim
	checked   kind = "checked"  // Check: the claim is still the caller's
	recorded  kind = "recorded" // Complete
	twice     kind = "done by another as well"
	lost      kind = "recorded or not" // Complete: ErrClosed
	released  kind = "released"
	suspended kind = "suspended" // Held has ended
	abandoned kind = "abandoned" // the process crashed, or stopped, under the claim
	forgotten kind = "forgotten" // by an operator: it was done until now
)

// idState is the state of an id in the sequential model. A history is legal if its
// operations are legal one after the other in some order that agrees with their times.
type idState struct {
	done       bool
	forgotten  bool  // it was done before: a process that has not seen its end may still skip the id
	recordedBy int   // process
	holder     int   // number of the grant under which a delivery works, in a session that is not suspended; 0: none
	owner      int   // process of the last grant
	token      int64 // of the last grant
}

// step reports whether the rule allows o in state s, and returns the next state.
func (s idState) step(o operation) (bool, idState) {
	next := s
	switch o.kind {
	case granted:
		next.holder, next.owner, next.token = o.hold, o.process, o.token
		// A token is granted again only to the process that it was granted to before.
		return !s.done && s.holder == 0 && (o.token > s.token || o.token == s.token && o.process == s.owner), next
	case skipped:
		return s.done || s.forgotten, s
	case forgotten:
		next.done, next.forgotten = false, true
		return s.done, next
	case checked:
		return s.holder == o.hold, s
	case released, suspended, abandoned:
		next.holder = 0
		return s.done || s.holder == o.hold, next
	case twice:
		return (s.done || s.forgotten) && s.recordedBy != o.process, s
	}
	// recorded or lost. The work may have been suspended meanwhile, but no other delivery may be
	// working on the id.
	if s.done || s.holder != 0 && s.holder != o.hold {
		return o.kind == lost, s
	}
	next.done, next.recordedBy, next.holder = true, o.process, 0
	return true, next
}

func (o operation) String() string {
	returns := "        ?"
	if o.returns != unknown {
		returns = fmt.Sprintf("%9.4f", o.returns.Seconds())
	}
	return fmt.Sprintf("%9.4f to %s s  process %d, worker %d: %s, hold %d, token %d\n", o.call.Seconds(), returns, o.process, o.worker, o.kind, o.hold, o.token)
}

// history records the operations of the deliveries of all processes, by id.
type history struct {
	began  time.Time
	enough chan struct{} // closed when there are as many as wanted
	holds  atomic.Int64  // how many claims were granted

	mu     sync.Mutex
	ops    map[string][]operation
	wanted int
	total  int
	count  map[kind]int
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(id string, o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[id] = append(h.ops[id], o)
	h.count[o.kind]++
	if h.total++; h.total == h.wanted {
		close(h.enough)
	}
}

// maxCheck bounds the check of one id, which usually takes milliseconds.
const maxCheck = time.Minute

// check reports whether the history of one id follows the rule.
func check(ops []operation) porcupine.CheckResult {
	model := porcupine.Model{
		Init: func() any { return idState{} },
		Step: func(state, input, _ any) (bool, any) { return state.(idState).step(input.(operation)) },
	}
	var history []porcupine.Operation
	for _, o := range ops {
		history = append(history, porcupine.Operation{ClientId: o.worker, Input: o, Call: int64(o.call), Return: int64(o.returns)})
	}
	return porcupine.CheckOperationsTimeout(model, history, maxCheck)
}

// wrong lists the operations of the first id whose history breaks the rule, or
// returns "". Ids are independent of each other.
func (h *history) wrong() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(h.ops)) {
		if result := check(h.ops[id]); result != porcupine.Ok {
			ops := slices.SortedFunc(slices.Values(h.ops[id]), func(a, b operation) int { return cmp.Compare(a.call, b.call) })
			return fmt.Sprintf("the history of id %s is %s:\n%v", id, strings.ToLower(string(result)), ops)
		}
	}
	return ""
}

// The model rejects each kind of illegal history. (That it accepts legal ones, each run shows.)
func TestCheckedModel(t *testing.T) {
	grant := func(process, hold int, token int64) operation {
		return operation{kind: granted, process: process, hold: hold, token: token}
	}
	of := func(k kind, process, hold int) operation { return operation{kind: k, process: process, hold: hold} }
	for _, test := range []struct {
		name string
		ops  []operation // one after the other
	}{
		{"two at once", []operation{grant(1, 1, 5), grant(2, 2, 6), of(released, 1, 1)}},
		{"goes on after another", []operation{grant(1, 1, 5), of(suspended, 1, 1), grant(2, 2, 6), of(released, 2, 2), grant(1, 3, 5)}},
		{"another's token", []operation{grant(1, 1, 5), of(released, 1, 1), grant(2, 2, 5)}},
		{"done and granted", []operation{grant(1, 1, 5), of(recorded, 1, 1), grant(2, 2, 6)}},
		{"skipped undone", []operation{grant(1, 1, 5), of(released, 1, 1), of(skipped, 2, 0)}},
		{"recorded twice", []operation{grant(1, 1, 5), of(suspended, 1, 1), grant(2, 2, 6), of(recorded, 2, 2), of(recorded, 1, 1)}},
		{"recorded during another's work", []operation{grant(1, 1, 5), of(suspended, 1, 1), grant(2, 2, 6), of(recorded, 1, 1), of(checked, 2, 2)}},
		{"done by itself alone", []operation{grant(1, 1, 5), of(suspended, 1, 1), grant(1, 2, 5), of(recorded, 1, 2), of(twice, 1, 1)}},
		{"forgotten undone", []operation{grant(1, 1, 5), of(released, 1, 1), of(forgotten, 0, 0)}},
		{"recorded twice after forgotten once", []operation{grant(1, 1, 5), of(recorded, 1, 1), of(forgotten, 0, 0), grant(2, 2, 6), of(recorded, 2, 2), grant(1, 3, 7)}},
	} {
		for i := range test.ops {
			test.ops[i].call, test.ops[i].returns = time.Duration(10*i), time.Duration(10*i+1)
		}
		if result := check(test.ops); result != porcupine.Illegal {
			t.Errorf("%s: %s", test.name, result)
		}
	}
}
