package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// roleKeys are the keys that a role has in etcd at one revision.
type roleKeys struct {
	sessions map[string]*mvccpb.KeyValue // by session
	windows  map[string]*mvccpb.KeyValue // by window
	claims   []batch
	records  []batch
}

// batch is a claim or a record: a key whose value lists ids.
type batch struct {
	*mvccpb.KeyValue
	session string // of a claim
	ids     []string
}

// keys reads all keys of a role. Each must be valid in the claim protocol.
func (e *env) keys(role string) roleKeys {
	e.t.Helper()
	prefix := "/service/" + role + "/"
	resp, err := e.etcd.Get(deadline(e.t), prefix, clientv3.WithPrefix())
	e.must(err)
	keys, err := parseKeys(prefix, resp.Kvs)
	e.must(err)
	return keys
}

// keyShapes has the keys by their first part, which it leaves out.
var keyShapes = map[string]*regexp.Regexp{
	"session": regexp.MustCompile(`^[0-9a-f]{16}$`),
	"window":  regexp.MustCompile(`^([0-9a-f]{16}|forever)$`),
	"claim":   regexp.MustCompile(`^[0-9a-f]{16}/0[0-9]{7,19}$`),
	"done":    regexp.MustCompile(`^([0-9a-f]{16}|forever)/[0-9a-f]{16}/0[0-9]{7,19}$`),
}

// parseKeys parses a role's keys and checks their names, values and leases against the
// documented table of keys.
func parseKeys(prefix string, kvs []*mvccpb.KeyValue) (roleKeys, error) {
	k := roleKeys{sessions: make(map[string]*mvccpb.KeyValue), windows: make(map[string]*mvccpb.KeyValue)}
	records := make(map[string][]batch) // by window
	for _, kv := range kvs {
		kind, rest, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), prefix), "/")
		first, _, _ := strings.Cut(rest, "/") // the session, or the window of a record
		b := batch{KeyValue: kv, session: first}
		ok := keyShapes[kind] != nil && keyShapes[kind].MatchString(rest)
		switch kind {
		case "session":
			k.sessions[first] = kv
			ok = ok && kv.Lease != 0 && len(kv.Value) > 0
		case "window":
			k.windows[first] = kv
			_, err := time.ParseDuration(string(kv.Value))
			ok = ok && err == nil && leaseName(kv.Lease) == first
		case "claim":
			ok = ok && b.list() && kv.Lease != 0
			k.claims = append(k.claims, b)
		case "done":
			ok = ok && b.list() && leaseName(kv.Lease) == first
			records[first] = append(records[first], b)
		}
		if !ok {
			return k, fmt.Errorf("key %s (lease %x, version %d) is invalid: %.300q", kv.Key, kv.Lease, kv.Version, kv.Value)
		}
	}
	for window := range k.windows { // records of ended windows do not count
		k.records = append(k.records, records[window]...)
	}
	for _, c := range k.claims {
		if s := k.sessions[c.session]; s == nil || s.Lease != c.Lease {
			return k, fmt.Errorf("claim %s has lease %x, its session is %v", c.Key, c.Lease, s)
		}
	}
	return k, nil
}

// leaseName returns the name of the window with that lease.
func leaseName(lease int64) string {
	if lease == 0 {
		return "forever"
	}
	return fmt.Sprintf("%016x", lease)
}

// list parses the ids. It reports whether the value is a JSON array of at least one id,
// without escapes that JSON does not require.
func (b *batch) list() bool {
	if json.Unmarshal(b.Value, &b.ids) != nil || len(b.ids) == 0 {
		return false
	}
	return bytes.Equal(b.Value, listIDs(b.ids))
}

// listIDs returns the value of a claim or a record of ids.
func listIDs(ids []string) []byte {
	var value bytes.Buffer
	e := json.NewEncoder(&value)
	e.SetEscapeHTML(false)
	if err := e.Encode(ids); err != nil {
		panic(err) // strings cannot fail
	}
	return bytes.TrimSpace(value.Bytes())
}

// done returns the ids that are recorded under living windows.
func (k roleKeys) done() map[string]bool { return union(k.records) }

// claimed returns the ids that claims list.
func (k roleKeys) claimed() map[string]bool { return union(k.claims) }

func union(batches []batch) map[string]bool {
	ids := make(map[string]bool)
	for _, b := range batches {
		for _, id := range b.ids {
			ids[id] = true
		}
	}
	return ids
}

// allDone returns an error unless n ids are done, none is claimed, and the queue is
// empty.
func (e *env) allDone(role string, n int) error {
	keys := e.keys(role)
	if done, claimed := len(keys.done()), len(keys.claimed()); done != n || claimed > 0 {
		return fmt.Errorf("%d of %d ids are done, %d claimed", done, n, claimed)
	}
	if depth := e.depth(role + "-queue"); depth != 0 {
		return fmt.Errorf("%d messages wait", depth)
	}
	return nil
}

// wantAllDone checks that n ids are done and none is claimed.
func (e *env) wantAllDone(role string, n int) {
	e.t.Helper()
	keys := e.keys(role)
	if done, claimed := keys.done(), keys.claimed(); len(done) != n || len(claimed) > 0 {
		e.t.Errorf("%s: %d ids are done, want %d; claimed: %.300q", role, len(done), n, fmt.Sprint(claimed))
	}
}

// fillRecords records the ids old0, old1, … for orders, n in all: perRecord ids in each
// record, and a million in each window. The windows last longer than a day.
func fillRecords(ctx context.Context, etcd *clientv3.Client, n, perRecord int) error {
	const perWindow, perTxn, session = 1_000_000, 100, "00000000000000ff"
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	write := 0
	for first := 0; first < n; first += perWindow {
		lease, err := etcd.Grant(ctx, 25*3600)
		if err != nil {
			return err
		}
		window := leaseName(int64(lease.ID))
		if _, err := etcd.Put(ctx, "/service/orders/window/"+window, "24h0m0s", clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
		ids := make([]string, min(perWindow, n-first))
		for i := range ids {
			ids[i] = fmt.Sprint("old", first+i)
		}
		var puts []clientv3.Op
		for record := range slices.Chunk(ids, perRecord) {
			write++
			key := fmt.Sprintf("/service/orders/done/%s/%s/%016d", window, session, write)
			puts = append(puts, clientv3.OpPut(key, string(listIDs(record)), clientv3.WithLease(lease.ID)))
		}
		for puts := range slices.Chunk(puts, perTxn) {
			group.Go(func() error {
				_, err := etcd.Txn(ctx).Then(puts...).Commit()
				return err
			})
		}
	}
	return group.Wait()
}

// deadline returns a context that ends after maxWait.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	t.Cleanup(cancel)
	return ctx
}
