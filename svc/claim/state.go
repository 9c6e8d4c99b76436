package claim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// change is one change of a key.
type change struct {
	Key     string // without /service/<role>/
	Value   []byte
	Deleted bool
	Created int64 // the key's CreateRevision
	Version int64 // how often the key was put since then
}

// roleState is the state of a role at one revision, as a pure function of its keys. It
// knows no server, no goroutine and no clock, and is not safe for concurrent use.
type roleState struct {
	sessions map[string]int64       // versions of session/<s>
	claims   map[string]*claimKey   // by claim/<s>/<n>
	queues   map[string][]*claimKey // the claims that list an id, the oldest first
	done     *doneSet
}

// claimKey is a key claim/<s>/<n>.
type claimKey struct {
	session string
	write   int64
	token   int64 // CreateRevision
	ids     []string
}

// newRoleState returns the state of a role without keys.
func newRoleState() *roleState {
	return &roleState{sessions: make(map[string]int64), claims: make(map[string]*claimKey), queues: make(map[string][]*claimKey), done: newDoneSet()}
}

// Done reports whether id was processed.
func (s *roleState) Done(id string) bool { return s.done.has(id) }

// Owner returns the oldest claim that lists id, or nil. It owns the id unless that is done.
func (s *roleState) Owner(id string) *claimKey {
	if queue := s.queues[id]; len(queue) > 0 {
		return queue[0]
	}
	return nil
}

// Version returns how many writes of a session the state has seen; 0 if the
// session does not live.
func (s *roleState) Version(session string) int64 { return s.sessions[session] }

// checkNoGap fails if changes before these were missed, as when etcd was restored
// from a backup: each write raises the version of its session's key by one.
func (s *roleState) checkNoGap(changes []change) error {
	versions := make(map[string]int64)
	for _, ch := range changes {
		name, ok := strings.CutPrefix(ch.Key, "session/")
		if !ok {
			continue
		}
		before, ok := versions[name]
		if !ok {
			before = s.sessions[name]
		}
		if !ch.Deleted && ch.Version != before+1 {
			return fmt.Errorf("changes were missed: write %d of session %s follows write %d", ch.Version, name, before)
		}
		versions[name] = ch.Version // 0 if deleted
	}
	return nil
}

// Apply applies the changes of one or more whole revisions, then calls changed for each id
// that they may concern: no process sees a part of a revision. (A page of a snapshot may be a
// part, but its state is used only when all pages have been applied.) recorded says that a record
// lists the id; otherwise its owner may have changed. Keys that cannot be read are ignored.
// The error names the first of them: there may be very many.
func (s *roleState) Apply(changes []change, changed func(id string, recorded bool)) error {
	touched := make([][]string, len(changes))
	recorded := func(i int) bool { return strings.HasPrefix(changes[i].Key, "done/") }
	added := 0
	var unreadable error
	for i, ch := range changes {
		ids, err := s.apply(ch)
		if err != nil {
			unreadable = cmp.Or(unreadable, fmt.Errorf("key %s: %w", ch.Key, err))
		}
		if touched[i] = ids; recorded(i) {
			added += len(ids)
		}
	}
	s.done.sweep(added)
	for i, ids := range touched {
		for _, id := range ids {
			changed(id, recorded(i))
		}
	}
	return unreadable
}

// apply applies one change, and returns the ids that it may concern.
func (s *roleState) apply(ch change) ([]string, error) {
	kind, name, _ := strings.Cut(ch.Key, "/")
	switch kind {
	case "session":
		if ch.Deleted {
			delete(s.sessions, name)
		} else {
			s.sessions[name] = ch.Version
		}
	case "window":
		if ch.Deleted {
			s.done.end(name)
		} else {
			s.done.begin(name, ch.Created)
		}
	case "done":
		if ch.Deleted { // a merged record replaces it, or its window ends in the same revision
			return nil, nil
		}
		window, _, _ := strings.Cut(name, "/")
		ids, err := parseIDs(ch.Value)
		for _, id := range ids {
			s.done.add(id, window)
		}
		return ids, err
	case "claim":
		return s.applyClaim(ch, name)
	default:
		return nil, errors.New("not of a known form: ignored")
	}
	return nil, nil
}

// applyClaim applies a change of the key claim/<name>.
func (s *roleState) applyClaim(ch change, name string) ([]string, error) {
	claim, known := s.claims[ch.Key]
	switch {
	case ch.Deleted && known:
		delete(s.claims, ch.Key)
		return s.list(claim, nil), nil
	case ch.Deleted:
		return nil, nil
	case !known:
		session, write, _ := strings.Cut(name, "/")
		n, err := strconv.ParseInt(write, 10, 64)
		if err != nil {
			return nil, err
		}
		claim = &claimKey{session: session, write: n, token: ch.Created}
		s.claims[ch.Key] = claim
	}
	ids, err := parseIDs(ch.Value)
	return s.list(claim, ids), err
}

// list makes a claim list these ids, and returns those that it did not list before or
// lists no more. Nearly always ids are some of the earlier ones, in the same order.
func (s *roleState) list(claim *claimKey, ids []string) (changed []string) {
	kept := 0
	for _, id := range claim.ids {
		if kept < len(ids) && ids[kept] == id {
			kept++
			continue
		}
		changed = append(changed, id)
		q := s.queues[id]
		i := slices.Index(q, claim)
		if q = slices.Delete(q, i, i+1); len(q) > 0 {
			s.queues[id] = q
		} else {
			delete(s.queues, id)
		}
	}
	for _, id := range ids[kept:] {
		changed = append(changed, id)
		q := s.queues[id]
		i, _ := slices.BinarySearchFunc(q, claim, func(a, b *claimKey) int { return cmp.Compare(a.token, b.token) })
		s.queues[id] = slices.Insert(q, i, claim)
	}
	claim.ids = ids
	return changed
}

func parseIDs(value []byte) (ids []string, err error) {
	if err := json.Unmarshal(value, &ids); err != nil {
		return nil, fmt.Errorf("not a JSON array of strings: %w", err)
	}
	return ids, nil
}
