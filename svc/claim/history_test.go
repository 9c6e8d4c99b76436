package claim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A state that follows the changes, a few revisions at a time, equals a state that is
// read from the keys at the same revision, and both agree with the rule. Apply names the ids whose claims
// have changed, and those that records list.
func TestFollowingIsReading(t *testing.T) {
	revisions := 0
	for seed := range uint64(300) {
		h := newHistory(seed)
		follower, seen := newRoleState(""), int64(0)
		follower.follows = true
		for range 80 {
			h.step()
			if h.rand.IntN(3) == 0 {
				continue // later changes arrive together with this one
			}
			events, before, named := slices.Concat(h.log[seen+1:]...), h.truth[seen], make(map[string]bool)
			if err := follower.Apply(events, func(id string, record *recordKey) { named[id] = record == nil || named[id] }); err != nil {
				t.Fatal(err)
			}
			single, windowEnded := h.revision == seen+1, slices.ContainsFunc(events, func(ch change) bool { return ch.Deleted && strings.HasPrefix(ch.Key, "window/") })
			seen = h.revision
			revisions++
			reader := newView("")
			if err := reader.Apply(h.snapshot(), func(string, *recordKey) {}); err != nil {
				t.Fatal(err)
			}
			if follower.done.living != reader.done.living || !reflect.DeepEqual(follower.sessions, reader.sessions) {
				t.Fatalf("history %d, revision %d: %d ids are done to the follower, %d to the reader; the sessions are %v and %v",
					seed, seen, follower.done.living, reader.done.living, follower.sessions, reader.sessions)
			}
			for id, want := range h.truth[seen] {
				a, b, rule := truthOf(follower, id).String(), truthOf(reader, id).String(), want.String()
				if a != rule || b != rule {
					t.Fatalf("history %d, revision %d: %s is %q to the follower, %q to the reader, %q by the rule",
						seed, seen, id, a, b, rule)
				}
				claims, is := named[id]
				if changed := rule != before[id].String(); changed && !is && !windowEnded || !changed && claims && single {
					t.Fatalf("history %d, revision %d: %s is named: %t, it was %q and is %q", seed, seen, id, is, before[id], rule)
				}
			}
		}
	}
	t.Logf("%d revisions compared", revisions)
}

// history makes random writes of several sessions, ends random leases and forgets random ids.
type history struct {
	*simEtcd
	rand     *rand.Rand
	sessions []*write // the last write of each session
	windows  []recordWindow
}

func newHistory(seed uint64) *history {
	ids := []string{"a", "b", "c", "d", "e", "f"}
	return &history{simEtcd: newSimEtcd(ids, ""), rand: rand.New(rand.NewPCG(seed, 0))}
}

// some returns some of the ids for which wanted is true, drawn at random.
func (h *history) some(wanted func(truth) bool) (ids []string) {
	for _, id := range h.ids {
		if h.rand.IntN(3) == 0 && wanted(h.truth[h.revision][id]) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (h *history) step() {
	switch n := h.rand.IntN(13); {
	case n == 0 || len(h.sessions) == 0:
		name := fmt.Sprintf("s%d", h.revision)
		h.sessions = append(h.sessions, &write{Session: name, N: 1})
		h.commit(h.put("session/"+name, `{"types":["`+name+`"]}`, h.grant(true)))
	case n == 1 || len(h.windows) == 0:
		lease := h.grant(false)
		h.windows = append(h.windows, recordWindow{Name: fmt.Sprint("w", lease), Lease: lease})
	case n == 2:
		h.end(int64(1 + h.rand.IntN(len(h.leases)))) // the lease of a session or a window
	case n == 3:
		for _, id := range h.some(func(t truth) bool { return t.done }) {
			h.forget(id)
		}
	default:
		h.write(h.sessions[h.rand.IntN(len(h.sessions))])
	}
}

// write makes a session claim ids, take some off its earlier claims, and record some
// that it owns, sometimes added to an earlier record.
func (h *history) write(last *write) {
	w := &write{Session: last.Session, N: last.N + 1, Window: h.windows[h.rand.IntN(len(h.windows))], NewWindow: true}
	w.Claim = h.some(func(truth) bool { return true })
	w.Done = h.some(func(t truth) bool { return t.owner() == w.Session })
	for _, key := range slices.Sorted(maps.Keys(h.keys)) {
		if name, isClaim := strings.CutPrefix(key, "claim/"+w.Session+"/"); isClaim {
			left := slices.DeleteFunc(slices.Clone(h.keys[key].ids), func(id string) bool { return h.rand.IntN(4) == 0 || slices.Contains(w.Done, id) })
			w.Left = append(w.Left, remainder{parseNumber(name), left})
		}
	}
	w.Record = w.N
	for n := int64(1); n < w.N && len(w.Done) > 0 && h.rand.IntN(2) == 0; n++ {
		name := fmt.Sprintf("%s/%s/%016d", w.Window.Name, w.Session, n)
		again := func(id string) bool { return h.forgotten(name, id) }
		if k, ok := h.keys["done/"+name]; ok && !slices.ContainsFunc(w.Done, again) {
			w.Record, w.Done = n, append(k.ids, w.Done...)
			break
		}
	}
	if a, _ := h.txn(&simCopy{write: *w}); a.version == w.N {
		last.N = w.N
	}
}
