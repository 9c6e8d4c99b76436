package claim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// simEtcd simulates the part of etcd that the exploration needs: keys under leases,
// conditional writes, and a log of revisions from which the views read.
type simEtcd struct {
	broken string // the broken variant; "": none

	revision   int64
	keys       map[string]simKey
	leases     []simLease          // lease n is leases[n-1]
	log        [][]change          // by revision
	truth      []map[string]truth  // by revision, of each id: the rule, computed from the keys
	recorded   map[string]int      // by id, how often it became done
	recordedBy map[string][]string // by id, the sessions that recorded it
	ids        []string
	paths      Etcd // for the names of the keys
}

type simLease struct{ living, session bool }

type simKey struct {
	value                      []byte
	ids                        []string // of claims and records
	created, modified, version int64
	lease                      int64
}

func newSimEtcd(ids []string, broken string) *simEtcd {
	e := &simEtcd{broken: broken, keys: make(map[string]simKey), recorded: make(map[string]int), recordedBy: make(map[string][]string), ids: ids, log: [][]change{nil}}
	e.truth = append(e.truth, e.rule())
	return e
}

// grant grants a lease for a session or for a window.
func (e *simEtcd) grant(session bool) int64 {
	e.leases = append(e.leases, simLease{true, session})
	return int64(len(e.leases))
}

func (e *simEtcd) lives(lease int64) bool { return e.leases[lease-1].living }

// end revokes or expires a lease: one revision deletes all its keys.
func (e *simEtcd) end(lease int64) {
	if !e.lives(lease) {
		return
	}
	e.leases[lease-1].living = false
	var events []change
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		if e.keys[key].lease == lease {
			events = append(events, e.delete(key))
		}
	}
	e.commit(events)
}

func (e *simEtcd) put(key string, value string, lease int64) change {
	k := e.keys[key]
	if k.created == 0 {
		k.created = e.revision + 1
	}
	k.version++
	k.modified = e.revision + 1
	k.value, k.lease = []byte(value), lease
	if value[0] == '[' {
		k.ids, _ = parseIDs(k.value)
	}
	e.keys[key] = k
	return e.event(key)
}

func (e *simEtcd) delete(key string) change {
	delete(e.keys, key)
	return change{Key: key, Deleted: true}
}

func (e *simEtcd) event(key string) change {
	k := e.keys[key]
	created := k.created
	if e.broken == "the newest claim owns" && strings.HasPrefix(key, "claim/") {
		created = 1<<40 - created // roleState takes the newest claim for the oldest
	}
	return change{Key: key, Value: k.value, Created: created, Version: k.version}
}

// commit makes events the next revision.
func (e *simEtcd) commit(events []change) {
	if len(events) == 0 {
		return
	}
	e.revision++
	e.log = append(e.log, events)
	e.truth = append(e.truth, e.rule())
	for id, t := range e.truth[e.revision] {
		if t.done && !e.truth[e.revision-1][id].done {
			e.recorded[id]++
		}
	}
}

// forget simulates svc/ids -forget, which forgets an id that is done.
func (e *simEtcd) forget(id string) {
	var events []change
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		forget := "forget" + strings.TrimPrefix(key, "done")
		k, before := e.keys[key], e.keys[forget].ids
		if forget != "forget"+key && slices.Contains(k.ids, id) && !slices.Contains(before, id) {
			events = append(events, e.put(forget, listJSON(append(slices.Clone(before), id)), k.lease))
		}
	}
	e.commit(events)
}

// snapshot returns all keys in the order of Etcd.readAll.
func (e *simEtcd) snapshot() (events []change) {
	keys := slices.Sorted(maps.Keys(e.keys))
	for _, forgets := range []bool{true, false} {
		for _, key := range keys {
			if strings.HasPrefix(key, "forget/") == forgets {
				events = append(events, e.event(key))
			}
		}
	}
	return events
}

// simAnswer is etcd's answer to a write.
type simAnswer struct {
	leaseGone bool
	version   int64 // of the session's key
	revision  int64 // at which it was put
}

// txn carries out one copy of a write, as etcd does for Etcd.send in commit.go.
func (e *simEtcd) txn(w *simCopy) (simAnswer, error) {
	session := "session/" + w.Session
	version := e.keys[session].version
	if version != w.N-1 && !(e.broken == "no condition on the version" && version > 0) {
		return simAnswer{version: version, revision: e.keys[session].modified}, nil
	}
	if len(w.Done) > 0 && !e.lives(w.Window.Lease) {
		return simAnswer{leaseGone: true}, nil
	}
	lease := e.keys[session].lease
	var events []change
	if e.broken == "ids are taken off before the record" && len(w.Done) > 0 && !w.half {
		w.half = true
		e.commit(e.rewrite(w, lease))
		return simAnswer{}, errHalf
	}
	events = append(events, e.put(session, string(e.keys[session].value), lease))
	if len(w.Done) > 0 {
		if w.NewWindow {
			events = append(events, e.put("window/"+w.Window.Name, "24h", w.Window.Lease))
		}
		for _, id := range w.Done {
			e.recordedBy[id] = append(e.recordedBy[id], w.Session)
		}
		events = append(events, e.put(e.paths.recordPath(&w.write), listJSON(w.Done), w.Window.Lease))
	}
	if !w.half {
		events = append(events, e.rewrite(w, lease)...)
	}
	if len(w.Claim) > 0 {
		events = append(events, e.put(e.paths.claimPath(&w.write, w.N), listJSON(w.Claim), lease))
	}
	e.commit(events)
	return simAnswer{version: w.N, revision: e.revision}, nil
}

var errHalf = fmt.Errorf("carried out by half")

func (e *simEtcd) rewrite(w *simCopy, lease int64) (events []change) {
	for _, left := range w.Left {
		key := e.paths.claimPath(&w.write, left.N)
		if _, exists := e.keys[key]; len(left.IDs) > 0 {
			events = append(events, e.put(key, listJSON(left.IDs), lease))
		} else if exists {
			events = append(events, e.delete(key))
		}
	}
	return events
}

// isVoid reports whether a copy can no longer have an effect and its answer is no
// longer awaited.
func (e *simEtcd) isVoid(w *simCopy) bool {
	version := e.keys["session/"+w.Session].version
	switch {
	case w.current() || w.half:
		return false
	case e.broken == "no condition on the version":
		return version == 0
	}
	return version != w.N-1 || len(w.Done) > 0 && !e.lives(w.Window.Lease)
}
