package claim

import (
	"cmp"
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
	past       []map[string]simKey // by revision, all keys
	truth      []map[string]truth  // by revision, of each id: the rule, computed from the keys
	recorded   map[string]int      // by id, how often it became done
	ended      map[string]int      // by id, how often it was done and then not: its window had ended, or it was forgotten
	expired    map[string]int      // by id, how many records that listed it have expired
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
	e := &simEtcd{broken: broken, ids: ids, revision: -1, keys: make(map[string]simKey)}
	e.recorded, e.ended, e.expired, e.recordedBy = make(map[string]int), make(map[string]int), make(map[string]int), make(map[string][]string)
	e.commit()
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
		if k := e.keys[key]; k.lease == lease {
			if strings.HasPrefix(key, "done/") { // whether it counted or was forgotten
				for _, id := range k.ids {
					e.expired[id]++
				}
			}
			events = append(events, e.delete(key))
		}
	}
	if len(events) > 0 {
		e.commit(events...)
	}
}

func (e *simEtcd) put(key string, value string, lease int64) change {
	k := e.keys[key]
	k.created = cmp.Or(k.created, e.revision+1)
	k.modified = e.revision + 1
	k.version++
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
	return change{Key: key, Value: k.value, Created: e.age(key, k), Version: k.version}
}

// age is the CreateRevision of a key, which in a broken variant makes views take the newest claim for
// the oldest. revisionOf undoes that.
func (e *simEtcd) age(key string, k simKey) int64 {
	if e.broken == "the newest claim owns" && strings.HasPrefix(key, "claim/") {
		return 1<<40 - k.created
	}
	return k.created
}

func revisionOf(token int64) int64 {
	if token > 1<<39 {
		return 1<<40 - token
	}
	return token
}

// commit makes events the next revision.
func (e *simEtcd) commit(events ...change) {
	e.revision++
	e.log = append(e.log, events)
	e.past = append(e.past, maps.Clone(e.keys))
	e.truth = append(e.truth, e.rule())
	for id, t := range e.truth[e.revision] {
		switch before := e.revision > 0 && e.truth[e.revision-1][id].done; {
		case t.done && !before:
			e.recorded[id]++
		case before && !t.done:
			e.ended[id]++
		}
	}
}

// forget simulates svc/ids -forget, which forgets an id that is done.
func (e *simEtcd) forget(id string) {
	var events []change
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		if name, isRecord := strings.CutPrefix(key, "done/"); isRecord && slices.Contains(e.keys[key].ids, id) && !e.forgotten(name, id) {
			ids := append(slices.Clone(e.keys["forget/"+name].ids), id)
			events = append(events, e.put("forget/"+name, listJSON(ids), e.keys[key].lease))
		}
	}
	e.commit(events...)
}

func (e *simEtcd) forgotten(record, id string) bool {
	return slices.Contains(e.keys["forget/"+record].ids, id)
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

// txn carries out one copy of a write, as etcd does for Etcd.send. It reports whether the copy was
// carried out as a whole.
func (e *simEtcd) txn(w *simCopy) (answer simAnswer, whole bool) {
	session := "session/" + w.Session
	k := e.keys[session]
	if k.version != w.N-1 && !(e.broken == "no condition on the version" && k.version > 0) {
		return simAnswer{version: k.version, revision: k.modified}, true
	}
	if len(w.Done) > 0 && !e.lives(w.Window.Lease) {
		return simAnswer{leaseGone: true}, true
	}
	if e.broken == "ids are taken off before the record" && len(w.Done) > 0 && !w.half {
		w.half = true
		e.commit(e.takeOff(w, k.lease)...)
		return simAnswer{}, false
	}
	events := []change{e.put(session, string(k.value), k.lease)}
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
		events = append(events, e.takeOff(w, k.lease)...)
	}
	if len(w.Claim) > 0 {
		events = append(events, e.put(e.paths.claimPath(&w.write, w.N), listJSON(w.Claim), k.lease))
	}
	e.commit(events...)
	return simAnswer{version: w.N, revision: e.revision}, true
}

func (e *simEtcd) takeOff(w *simCopy, lease int64) (events []change) {
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
