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
	Key     string // without the prefix of the role's keys
	Value   []byte
	Deleted bool
	Created int64 // the key's CreateRevision
	Version int64 // how often the key was put since then
}

// roleState is the state of a role at one revision, as a pure function of its keys: the
// view of a process. It knows no server, no goroutine and no clock, and is not safe for
// concurrent use.
type roleState struct {
	sessions map[string]sessionKey  // by <s>
	claims   map[string]*claimKey   // by claim/<s>/<n>
	queues   map[string][]*claimKey // the claims that list an id, the oldest first
	done     *doneSet
	// forgotten has the ids of each key forget/<w>/<s>/<n>, by its record. They are few.
	forgotten map[recordName][]string

	session string    // of the process whose view this is; "": it has none yet
	record  recordKey // the latest of that session
	follows bool      // changes follow without a gap; not while all keys are read
}

// sessionKey is a key session/<s>.
type sessionKey struct {
	version int64
	types   []string // that the process handles
}

// Process is the value of a session's key, in JSON.
type Process struct {
	Host  string   `json:"host"`
	PID   int      `json:"pid"`
	Types []string `json:"types,omitempty"` // of the events that it handles
}

// claimKey is a key claim/<s>/<n>.
type claimKey struct {
	session string
	write   int64
	token   int64 // CreateRevision
	ids     []string
	size    int // of the value, in bytes
}

// recordKey is a key done/<w>/<s>/<n>.
type recordKey struct {
	recordName
	ids []string
}

// recordName is <w>/<s>/<n>, the name of a record.
type recordName struct {
	window, session string
	write           int64
}

// newRoleState returns the state of a role without keys, as the view of a process.
func newRoleState(session string) *roleState {
	return &roleState{
		sessions: make(map[string]sessionKey), claims: make(map[string]*claimKey), queues: make(map[string][]*claimKey),
		done: newDoneSet(), forgotten: make(map[recordName][]string), session: session,
	}
}

// Done reports whether id was processed.
func (s *roleState) Done(id string) bool { return s.done.has(id) }

// Claims returns the claims that list id, the oldest first. That one owns the id unless it
// is done.
func (s *roleState) Claims(id string) []*claimKey { return s.queues[id] }

// Version returns how many writes of a session the state has seen; 0 if the
// session does not live.
func (s *roleState) Version(session string) int64 { return s.sessions[session].version }

// errMissed says that etcd was restored from a backup: changes are missing between those that
// the state shows and the next.
var errMissed = errors.New("changes were missed")

// Apply applies the changes of one or more whole revisions, then calls changed for each id
// that they may concern: no process sees a part of a revision. (A page of a snapshot may be a
// part, but its state is used only when all pages have been applied.) record is the record
// that lists the id; nil means that its claims have changed, or that it was forgotten. Keys that
// cannot be read are ignored, and the error names the first of them: there may be very many.
// errMissed comes before such an error.
func (s *roleState) Apply(changes []change, changed func(id string, record *recordKey)) error {
	type touched struct {
		ids    []string
		record *recordKey
	}
	all := make([]touched, 0, len(changes))
	added := 0
	var failed error
	for _, ch := range changes {
		ids, record, err := s.set(ch)
		if err != nil && (failed == nil || errors.Is(err, errMissed)) {
			failed = fmt.Errorf("key %s: %w", ch.Key, err)
		}
		if all = append(all, touched{ids, record}); record != nil {
			added += len(ids)
		}
	}
	s.done.sweep(added)
	for _, t := range all {
		for _, id := range t.ids {
			changed(id, t.record)
		}
	}
	return failed
}

// set sets or deletes one key. It returns the ids that the change may concern, and the
// record if the change is one.
func (s *roleState) set(ch change) ([]string, *recordKey, error) {
	kind, name, _ := strings.Cut(ch.Key, "/")
	switch kind {
	case "session":
		before, known := s.sessions[name]
		if ch.Deleted {
			delete(s.sessions, name)
			break
		}
		if !known { // a session does not change its value
			var process Process
			_ = json.Unmarshal(ch.Value, &process) // of an earlier version: no types
			before.types = process.Types
		}
		s.sessions[name] = sessionKey{ch.Version, before.types}
		if s.follows && ch.Version != before.version+1 { // each write raises the version by one
			return nil, nil, fmt.Errorf("%w: write %d follows write %d", errMissed, ch.Version, before.version)
		}
	case "window":
		if ch.Deleted {
			s.done.end(name)
		} else {
			s.done.begin(name, ch.Created)
		}
	case "done":
		if !ch.Deleted { // otherwise its window ends in the same revision
			return s.setRecord(ch, name)
		}
	case "forget":
		ids, err := s.setForget(ch, name)
		return ids, nil, err
	case "claim":
		ids, err := s.setClaim(ch, name)
		return ids, nil, err
	default:
		return nil, nil, errors.New("not of a known form: ignored")
	}
	return nil, nil, nil
}

// setRecord sets the key done/<name>. It returns the ids that the record lists, without those
// that were forgotten.
func (s *roleState) setRecord(ch change, name string) ([]string, *recordKey, error) {
	record, err := parseRecordName(name)
	if err != nil {
		return nil, nil, err
	}
	all, err := parseIDs(ch.Value)
	r := &recordKey{record, all}
	if record.session == s.session && record.write >= s.record.write {
		s.record = *r
	}
	ids := all
	if forgotten := s.forgotten[record]; forgotten != nil {
		ids = slices.DeleteFunc(slices.Clone(all), func(id string) bool { return slices.Contains(forgotten, id) })
	}
	for _, id := range ids {
		s.done.add(id, record.window)
	}
	return ids, r, err
}

// setForget sets or deletes the key forget/<name>, and returns the ids that it forgets.
// No other record counts for them: an id is recorded only by its owner, and only if it is not
// done.
func (s *roleState) setForget(ch change, name string) (forgets []string, err error) {
	record, err := parseRecordName(name)
	if err != nil {
		return nil, err
	}
	if ch.Deleted { // its window ends in the same revision
		delete(s.forgotten, record)
		return nil, nil
	}
	ids, err := parseIDs(ch.Value)
	for _, id := range ids {
		if !slices.Contains(s.forgotten[record], id) {
			s.done.remove(id, record.window)
			forgets = append(forgets, id)
		}
	}
	s.forgotten[record] = ids
	return forgets, err
}

// setClaim sets or deletes the key claim/<name>.
func (s *roleState) setClaim(ch change, name string) ([]string, error) {
	claim, known := s.claims[ch.Key]
	switch {
	case ch.Deleted && known:
		delete(s.claims, ch.Key)
		return s.replace(claim, nil), nil
	case ch.Deleted:
		return nil, nil
	case !known:
		session, write, err := parseName(name)
		if err != nil {
			return nil, err
		}
		claim = &claimKey{session: session, write: write, token: ch.Created}
		s.claims[ch.Key] = claim
	}
	claim.size = len(ch.Value)
	ids, err := parseIDs(ch.Value)
	return s.replace(claim, ids), err
}

// replace replaces the ids of a claim, and returns those that it did not list before or
// lists no more. Nearly always ids are some of the earlier ones, in the same order.
func (s *roleState) replace(claim *claimKey, ids []string) (changed []string) {
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

// parseName parses <s>/<n>.
func parseName(name string) (session string, write int64, err error) {
	session, number, _ := strings.Cut(name, "/")
	write, err = strconv.ParseInt(number, 10, 64)
	return session, write, err
}

// parseRecordName parses <w>/<s>/<n>.
func parseRecordName(name string) (record recordName, err error) {
	window, name, _ := strings.Cut(name, "/")
	session, write, err := parseName(name)
	return recordName{window, session, write}, err
}

func parseIDs(value []byte) (ids []string, err error) {
	if err := json.Unmarshal(value, &ids); err != nil {
		return nil, fmt.Errorf("not a JSON array of strings: %w", err)
	}
	return ids, nil
}
