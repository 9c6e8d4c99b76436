// Package lookup tells what etcd knows of ids, and forgets ids, while services run. Package claim
// describes the keys.
//
//	role := lookup.Role{Client: client, Prefix: "/service/orders/", Timeout: 10 * time.Second}
//	answers, err := role.Lookup(ctx, "7", "8")
package lookup

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Role is the keys of a role.
type Role struct {
	Client  *etcd.Client
	Prefix  string        // of the keys
	Timeout time.Duration // how long etcd may take to answer
}

// State is what is known of an id.
type State string

const (
	Done      State = "done"      // it was processed
	Claimed   State = "claimed"   // a process works on it, or is about to
	Unknown   State = "unknown"   // neither
	Forgotten State = "forgotten" // it was done until now
)

// Answer is what is known of an id.
type Answer struct {
	ID      string
	State   State
	Session string        // that recorded or claims it; "": none
	Process string        // host and pid, if that session lives
	Left    time.Duration // how long it will be remembered; 0: for ever, or it is not done
}

// ErrNoAnswer says that etcd has not answered within the timeout.
var ErrNoAnswer = errors.New("etcd does not answer")

// Lookup returns what is known of the ids, in their order.
func (r Role) Lookup(ctx context.Context, ids ...string) ([]Answer, error) {
	m, err := r.read(ctx, ids)
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(ids))
	for i, id := range ids {
		answers[i] = m.answer(id)
		if records := m.counting(id); len(records) > 0 {
			if answers[i].Left, err = r.left(ctx, records[0]); err != nil {
				return nil, err
			}
		}
	}
	return answers, nil
}

// memory is what the keys say about some ids at one revision.
type memory struct {
	records  map[string][]record // that list an id
	claims   map[string]claimKey // the oldest that lists an id
	forgets  map[string]forget   // by the record's name
	sessions map[string]string   // host and pid
	windows  map[string]bool     // that live
}

// record is the name of a record, <w>/<s>/<n>.
type record string

func (r record) window() string  { return strings.Split(string(r), "/")[0] }
func (r record) session() string { return strings.Split(string(r)+"/", "/")[1] }

// lease returns the lease of the record's window, or 0 if that is for ever.
func (r record) lease() clientv3.LeaseID {
	lease, _ := strconv.ParseInt(r.window(), 16, 64)
	return clientv3.LeaseID(lease)
}

type claimKey struct {
	session string
	created int64
}

// forget is a key forget/<w>/<s>/<n>.
type forget struct {
	ids      []string
	modified int64 // ModRevision; 0: there is no such key
}

// read reads all keys, and keeps what they say about ids. It fails if etcd does not answer for
// r.Timeout.
func (r Role) read(ctx context.Context, ids []string) (*memory, error) {
	m := &memory{
		records: make(map[string][]record), claims: make(map[string]claimKey), forgets: make(map[string]forget),
		sessions: make(map[string]string), windows: make(map[string]bool),
	}
	wanted := make(map[string]bool)
	for _, id := range ids {
		wanted[id] = true
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := time.AfterFunc(r.Timeout, func() { cancel(ErrNoAnswer) })
	defer timeout.Stop()
	_, err := claim.ReadKeys(ctx, r.Client, r.Prefix, 0, func(page []*mvccpb.KeyValue) error {
		for _, kv := range page {
			m.add(strings.TrimPrefix(string(kv.Key), r.Prefix), kv, wanted)
		}
		timeout.Reset(r.Timeout)
		return nil
	})
	return m, err
}

// add adds what a key says about the ids that are wanted. Keys that cannot be read say nothing.
func (m *memory) add(key string, kv *mvccpb.KeyValue, wanted map[string]bool) {
	kind, name, _ := strings.Cut(key, "/")
	switch kind {
	case "session":
		m.sessions[name] = process(kv.Value)
		return
	case "window":
		m.windows[name] = true
		return
	}
	var ids []string
	if json.Unmarshal(kv.Value, &ids) != nil {
		return
	}
	if kind == "forget" {
		m.forgets[name] = forget{ids, kv.ModRevision}
		return
	}
	for _, id := range ids {
		switch oldest, claimed := m.claims[id]; {
		case !wanted[id]:
		case kind == "done":
			m.records[id] = append(m.records[id], record(name))
		case kind == "claim" && (!claimed || kv.CreateRevision < oldest.created):
			session, _, _ := strings.Cut(name, "/")
			m.claims[id] = claimKey{session, kv.CreateRevision}
		}
	}
}

// process returns the host and the pid in the value of a session's key.
func process(value []byte) string {
	var p claim.Process
	if json.Unmarshal(value, &p) != nil { // an earlier version wrote host and pid
		return string(value)
	}
	return p.Host + " " + strconv.Itoa(p.PID)
}

// counting returns the records for which an id is done.
func (m *memory) counting(id string) []record {
	return slices.DeleteFunc(slices.Clone(m.records[id]), func(r record) bool {
		return !m.windows[r.window()] || slices.Contains(m.forgets[string(r)].ids, id)
	})
}

// answer applies the rule of package claim to an id.
func (m *memory) answer(id string) Answer {
	a := Answer{ID: id, State: Unknown}
	if records := m.counting(id); len(records) > 0 {
		a.State, a.Session = Done, records[0].session()
	} else if c, claimed := m.claims[id]; claimed {
		a.State, a.Session = Claimed, c.session
	}
	a.Process = m.sessions[a.Session]
	return a
}

// left returns how much longer a record lives, or 0 if it does for ever.
func (r Role) left(ctx context.Context, of record) (time.Duration, error) {
	if of.lease() == clientv3.NoLease {
		return 0, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.Timeout, ErrNoAnswer)
	defer cancel()
	resp, err := r.Client.Raw.TimeToLive(ctx, of.lease())
	if err != nil {
		return 0, errors.Join(context.Cause(ctx), err)
	}
	return time.Duration(max(1, resp.TTL)) * time.Second, nil // it may have ended since it was read
}
