package claim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// hasher hashes the canonical form of a state. In that form the names of sessions and
// windows are replaced by numbers in the order of their appearance, revisions and the
// numbers of writes by their ranks, and changes that both views have seen are left
// out. A state and the same state with its processes exchanged have the same form.
type hasher struct {
	items []item
	last  map[string]int64 // the version of each session's key, also of those that have ended
}

// item is a part of the form: the name of a session or window, the number of a write of that session, a
// revision, or another number.
type item struct {
	name   string // "": none
	n      int64
	ranked bool // n is the number of a write, or a revision
}

func (h *hasher) hash(x *run) [sha256.Size]byte {
	var first []byte
	for i := range x.processes {
		h.items = h.items[:0]
		h.addRun(x, []*simProcess{x.processes[i], x.processes[1-i]})
		if form := h.form(); first == nil || bytes.Compare(form, first) < 0 {
			first = form
		}
	}
	return sha256.Sum256(first)
}

// form replaces names and ranked numbers.
func (h *hasher) form() []byte {
	form, ranks := make([]byte, 0, 2*len(h.items)), make(map[string][]int64)
	for _, it := range h.items {
		if it.ranked {
			if i, known := slices.BinarySearch(ranks[it.name], it.n); !known {
				ranks[it.name] = slices.Insert(ranks[it.name], i, it.n)
			}
		}
	}
	var names []string
	for _, it := range h.items {
		if it.name != "" {
			i := slices.Index(names, it.name)
			if i < 0 {
				i = len(names)
				names = append(names, it.name)
			}
			form = binary.AppendVarint(form, int64(i))
		}
		if it.ranked {
			rank, _ := slices.BinarySearch(ranks[it.name], it.n)
			it.n = int64(rank)
		}
		form = binary.AppendVarint(form, it.n)
	}
	return form
}

func (h *hasher) add(values ...int) {
	for _, v := range values {
		h.items = append(h.items, item{n: int64(v)})
	}
}

func (h *hasher) addBools(values ...bool) { h.add(bits(values...)) }

// bits returns a number with a bit for each value.
func bits(values ...bool) (n int) {
	for _, v := range values {
		if n *= 2; v {
			n++
		}
	}
	return n
}

func (h *hasher) addName(name string)              { h.items = append(h.items, item{name: name}) }
func (h *hasher) addWrite(session string, n int64) { h.items = append(h.items, item{session, n, true}) }
func (h *hasher) addRevision(n int64)              { h.items = append(h.items, item{n: n, ranked: true}) }

// addVersion adds a version of a session's key, or the number of a write that is to be sent.
func (h *hasher) addVersion(session string, n int64) {
	h.addWrite(session, n)
	h.add(int(n - h.last[session]))
}

// addIDs adds ids, whose order does not matter. Ids differ in their first byte.
func (h *hasher) addIDs(ids []string) {
	set := 0
	for _, id := range ids {
		set |= 1 << (id[0] - 'a')
	}
	h.add(len(ids), set)
}

func (h *hasher) addRun(x *run, processes []*simProcess) {
	h.add(x.acked, x.dead)
	h.addBools(x.hurt)
	h.addIDs(x.queue)
	for _, id := range x.etcd.ids {
		h.add(min(x.works[id], 2+x.etcd.ended[id]), x.etcd.ended[id], x.etcd.expired[id], x.etcd.recorded[id]-x.completed[id], x.completed[id])
	}
	owner := func(key string) int { // of the two, or another
		return slices.IndexFunc(processes, func(p *simProcess) bool { return strings.Contains(key+"/", "/"+p.c.view.session+"/") })
	}
	// A view is a function of the keys at its revision: run.check compares the two.
	h.last = make(map[string]int64)
	for r := min(processes[0].view, processes[1].view); r <= x.etcd.revision; r++ {
		for _, p := range processes {
			h.addBools(p.view == r)
		}
		for _, name := range slices.SortedFunc(maps.Keys(x.etcd.past[r]), func(a, b string) int { return cmp.Or(owner(a)-owner(b), cmp.Compare(a, b)) }) {
			h.addKey(name, x.etcd.past[r][name])
		}
	}
	for _, p := range processes {
		h.addProcess(p, x.etcd.ids)
	}
	h.add(len(x.net))
	for _, w := range slices.SortedFunc(slices.Values(x.net), func(a, b *simCopy) int {
		return cmp.Or(slices.Index(processes, a.from)-slices.Index(processes, b.from), cmp.Compare(a.Session, b.Session), cmp.Compare(a.N, b.N), a.call-b.call)
	}) {
		h.addBools(w.current(), w.half)
		h.addContent(&w.write)
	}
	for i, lease := range x.etcd.leases {
		if lease.living && !lease.session {
			h.addName(leaseName(clientv3.LeaseID(i + 1)))
		}
	}
}

func (h *hasher) addKey(name string, k simKey) {
	kind, name, _ := strings.Cut(name, "/")
	h.add(int(kind[0]))
	switch kind {
	case "session":
		h.last[name] = k.version
		h.addWrite(name, k.version)
	case "window":
		h.addName(name)
	case "claim":
		session, n, _ := parseName(name)
		h.addWrite(session, n)
		h.addRevision(k.created)
		h.addIDs(k.ids)
	default:
		record, _ := parseRecordName(name)
		h.addRecord(record)
		h.addIDs(k.ids)
	}
}

func (h *hasher) addRecord(r recordName) {
	h.addName(r.window)
	h.addWrite(r.session, r.write)
}

func (h *hasher) addContent(w *write) {
	h.addVersion(w.Session, w.N)
	h.addIDs(w.Claim)
	h.add(len(w.Left))
	for _, left := range slices.SortedFunc(slices.Values(w.Left), func(a, b remainder) int { return cmp.Compare(a.N, b.N) }) {
		h.addWrite(w.Session, left.N)
		h.addIDs(left.IDs)
	}
	if h.addIDs(w.Done); len(w.Done) > 0 {
		h.addBools(w.NewWindow)
		h.addRecord(recordName{w.Window.Name, w.Session, w.Record})
	}
}

// addProcess adds the parts of a process on which its next steps depend, besides its view.
func (h *hasher) addProcess(p *simProcess, ids []string) {
	c := p.c
	h.addBools(p.over, len(c.wake) > 0, p.suspended(), p.sending != nil, c.committed == 0, c.viewed >= c.committed, c.pending != nil)
	h.addVersion(c.view.session, c.sent)
	h.addName(c.window.Name)
	h.add(len(c.checks))
	if c.pending != nil {
		h.addContent(c.pending)
		h.add(len(c.pending.checks))
	}
	h.addRecord(c.view.record.recordName)
	h.addIDs(c.view.record.ids)
	for _, id := range ids {
		if e := c.entries[id]; e != nil {
			h.add(1 + len(e.waiting))
			h.addBools(e.holder != nil, e.finished, e.done, e.recorded, e.pending, e.due)
		} else {
			h.add(0)
		}
	}
	var deliveries []int
	for _, d := range p.deliveries {
		e, place := c.entries[d.id], 0 // among the deliveries of the id
		if e != nil && e.holder != d.claim {
			place = 2 + slices.Index(e.waiting, d.claim)
		}
		flags := bits(e != nil, d.gone, d.last.token > 0 && d.claim.Held.Err() == nil, slices.Contains(c.checks, d.check))
		deliveries = append(deliveries, int(d.id[0]-'a')<<8|int(d.phase)<<6|place<<4|flags)
	}
	slices.Sort(deliveries)
	h.add(len(deliveries))
	h.add(deliveries...)
}

// The canonical form of a state contains every field on which the claimer's next steps
// depend. A new field of one of these types must be added to the form if it matters
// there, and its number must be corrected here.
func TestHashKnowsTheFields(t *testing.T) {
	for typ, want := range map[reflect.Type]int{
		reflect.TypeFor[claimer](): 16, reflect.TypeFor[entry](): 9, reflect.TypeFor[Claim](): 5, reflect.TypeFor[write](): 12,
		reflect.TypeFor[roleState](): 8, reflect.TypeFor[claimKey](): 5, reflect.TypeFor[recordKey](): 2, reflect.TypeFor[recordName](): 3, reflect.TypeFor[doneSet](): 10,
	} {
		if typ.NumField() != want {
			t.Errorf("%v has %d fields, the exploration expects %d", typ, typ.NumField(), want)
		}
	}
}

// newView is newRoleState with one map in place of a thousand, which take long to make.
func newView(session string) *roleState {
	done := &doneSet{seeds: viewSeeds, windows: make(map[uint32]*window), numbers: make(map[string]uint32)}
	one := make(map[hash]uint32)
	for i := range done.shards {
		done.shards[i] = one
	}
	return &roleState{
		sessions: make(map[string]sessionKey), claims: make(map[string]*claimKey), queues: make(map[string][]*claimKey),
		done: done, forgotten: make(map[recordName][]string), session: session,
	}
}

var viewSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// newSimClaimer is newClaimer with such a view.
func newSimClaimer() *claimer {
	c := &claimer{wake: make(chan struct{}, 1), view: newView(""), entries: make(map[string]*entry)}
	c.held, c.suspend = context.WithCancelCause(context.Background())
	c.suspend(ErrSuspended)
	return c
}
