package claim_test

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
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
	granted   kind = "granted"   // by Claim or Reclaim
	skipped   kind = "ErrDone"   // from Claim or Reclaim
	withdrawn kind = "withdrawn" // the delivery ended while it waited
	checked   kind = "checked"   // Check: the claim is still the caller's
	recorded  kind = "recorded"  // Complete
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
	case recorded, lost:
		// The work may have been suspended meanwhile, but no other delivery may be
		// working on the id.
		if s.done || s.holder != 0 && s.holder != o.hold {
			return o.kind == lost, s
		}
		next.done, next.recordedBy, next.holder = true, o.process, 0
		return true, next
	}
	return true, s
}

func (o operation) String() string {
	text := fmt.Sprintf("process %d, worker %d: %s", o.process, o.worker, o.kind)
	if o.hold > 0 {
		text += fmt.Sprintf(", hold %d", o.hold)
	}
	if o.token > 0 {
		text += fmt.Sprintf(", token %d", o.token)
	}
	return text
}

var model = porcupine.Model{
	Init: func() any { return idState{} },
	Step: func(state, input, _ any) (bool, any) {
		return state.(idState).step(input.(operation))
	},
	DescribeOperation: func(input, _ any) string { return input.(operation).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// history records the operations of the deliveries of all processes, by id.
type history struct {
	began time.Time

	changed chan struct{} // receives a value after operations were added

	mu    sync.Mutex
	ops   map[string][]operation
	total int
	count map[kind]int
	holds int
}

func newHistory() *history {
	return &history{began: time.Now(), changed: make(chan struct{}, 1), ops: make(map[string][]operation), count: make(map[kind]int)}
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(id string, o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[id] = append(h.ops[id], o)
	if o.kind != withdrawn {
		h.total++
	}
	h.count[o.kind]++
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// newHold returns the number of a new grant.
func (h *history) newHold() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holds++
	return h.holds
}

func (h *history) length() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
}

// maxCheck bounds the check of one id, which usually takes milliseconds.
const maxCheck = time.Minute

// check reports whether the history of one id follows the rule.
func check(ops []operation) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	var history []porcupine.Operation
	for _, o := range ops {
		if o.kind != withdrawn { // a withdrawal is legal at any time
			history = append(history, porcupine.Operation{ClientId: o.worker, Input: o, Call: int64(o.call), Return: int64(o.returns)})
		}
	}
	return porcupine.CheckOperationsVerbose(model, history, maxCheck)
}

// wrong lists the operations of the first id whose history breaks the rule, or
// returns "". Ids are independent of each other. If draw is true, wrong also writes
// a drawing of the history to a file.
func (h *history) wrong(draw bool) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(h.ops)) {
		result, info := check(h.ops[id])
		if result == porcupine.Ok {
			continue
		}
		text := fmt.Sprintf("the history of id %s is %s:\n%s", id, strings.ToLower(string(result)), list(h.ops[id]))
		if !draw {
			return text
		}
		file, err := os.CreateTemp("", "checked-*.html")
		if err != nil {
			return text + err.Error()
		}
		defer file.Close()
		if err := porcupine.Visualize(model, info, file); err != nil {
			return text + err.Error()
		}
		return text + "drawn in " + file.Name()
	}
	return ""
}

func list(ops []operation) string {
	var b strings.Builder
	for _, o := range slices.SortedFunc(slices.Values(ops), func(a, b operation) int { return cmp.Compare(a.call, b.call) }) {
		returns := "        ?"
		if o.returns != unknown {
			returns = fmt.Sprintf("%9.4f", o.returns.Seconds())
		}
		fmt.Fprintf(&b, "  %9.4f to %s s  %s\n", o.call.Seconds(), returns, o)
	}
	return b.String()
}

// The model accepts legal histories and rejects each kind of illegal one.
func TestCheckedModel(t *testing.T) {
	at := func(ms int, o operation) operation {
		o.call, o.returns = time.Duration(ms)*time.Millisecond, time.Duration(ms+1)*time.Millisecond
		return o
	}
	grant := func(ms, process, hold int, token int64) operation {
		return at(ms, operation{kind: granted, process: process, hold: hold, token: token})
	}
	of := func(ms int, k kind, process, hold int) operation {
		return at(ms, operation{kind: k, process: process, hold: hold})
	}
	open := of(20, lost, 1, 1)
	open.returns = unknown
	for _, test := range []struct {
		name  string
		legal bool
		ops   []operation
	}{
		{"released to another", true, []operation{grant(0, 1, 1, 5), of(10, released, 1, 1), grant(20, 2, 2, 6), of(30, recorded, 2, 2), of(40, skipped, 1, 0)}},
		{"two at once", false, []operation{grant(0, 1, 1, 5), grant(10, 2, 2, 6), of(20, released, 1, 1)}},
		{"superseded while suspended", true, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 2, 2, 6), of(30, recorded, 2, 2), of(40, twice, 1, 1)}},
		{"goes on under its token", true, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 1, 2, 5), of(30, checked, 1, 2)}},
		{"goes on after another", false, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 2, 2, 6), of(30, released, 2, 2), grant(40, 1, 3, 5)}},
		{"another's token", false, []operation{grant(0, 1, 1, 5), of(10, released, 1, 1), grant(20, 2, 2, 5)}},
		{"done and granted", false, []operation{grant(0, 1, 1, 5), of(10, recorded, 1, 1), grant(20, 2, 2, 6)}},
		{"skipped undone", false, []operation{grant(0, 1, 1, 5), of(10, released, 1, 1), of(20, skipped, 2, 0)}},
		{"recorded twice", false, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 2, 2, 6), of(30, recorded, 2, 2), of(40, recorded, 1, 1)}},
		{"recorded during another's work", false, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 2, 2, 6), of(30, recorded, 1, 1), of(40, checked, 2, 2)}},
		{"done by itself alone", false, []operation{grant(0, 1, 1, 5), of(10, suspended, 1, 1), grant(20, 1, 2, 5), of(30, recorded, 1, 2), of(40, twice, 1, 1)}},
		{"forgotten, and granted", true, []operation{grant(0, 1, 1, 5), of(10, recorded, 1, 1), of(20, forgotten, 0, 0), grant(30, 2, 2, 6), of(40, skipped, 1, 0), of(50, recorded, 2, 2)}},
		{"forgotten undone", false, []operation{grant(0, 1, 1, 5), of(10, released, 1, 1), of(20, forgotten, 0, 0)}},
		{"recorded twice after forgotten once", false, []operation{grant(0, 1, 1, 5), of(10, recorded, 1, 1), of(20, forgotten, 0, 0), grant(30, 2, 2, 6), of(40, recorded, 2, 2), grant(50, 1, 3, 7)}},
		{"unknown, and recorded", true, []operation{grant(0, 1, 1, 5), open, of(30, abandoned, 1, 1), of(40, skipped, 2, 0)}},
		{"unknown, and not recorded", true, []operation{grant(0, 1, 1, 5), open, of(30, abandoned, 1, 1), grant(40, 2, 2, 6), of(50, checked, 2, 2)}},
	} {
		if result, _ := check(test.ops); (result == porcupine.Ok) != test.legal {
			t.Errorf("%s: %s, want legal %t", test.name, result, test.legal)
		}
	}
}
