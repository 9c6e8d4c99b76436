package claim

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// hasher hashes the canonical form of a state. In that form the names of sessions and
// windows are replaced by numbers in the order of their appearance, revisions and the
// numbers of writes by their ranks, and changes that both views have seen are left
// out. A state and the same state with its processes exchanged have the same form. So
// has the state with the ids a and b exchanged, if the scenario treats both alike.
type hasher struct {
	seeds [2]maphash.Seed

	x        *run
	b        []byte
	swapped  bool // a stands for b, and b for a
	sessions []string
	windows  []string
	tokens   []int64
	numbers  map[string][]int64 // numbers of writes, by session
}

func newHasher() hasher {
	return hasher{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

func (h *hasher) hash(x *run) (sum [16]byte) {
	h.x = x
	h.rank()
	var first []byte
	for _, h.swapped = range []bool{false, true}[:x.symmetries()] {
		for process := range x.processes {
			if form := h.encode(process); first == nil || bytes.Compare(form, first) < 0 {
				first = bytes.Clone(form)
			}
		}
	}
	for i, seed := range h.seeds {
		binary.LittleEndian.PutUint64(sum[8*i:], maphash.Bytes(seed, first))
	}
	return sum
}

// rank collects the revisions and the numbers of writes that occur in the state.
func (h *hasher) rank() {
	h.tokens, h.numbers = h.tokens[:0], make(map[string][]int64)
	key := func(name string, created int64) {
		if parts := strings.Split(name, "/"); parts[0] == "claim" {
			h.tokens = append(h.tokens, created)
			h.number(parts[1], parseNumber(parts[2]))
		} else if parts[0] == "done" || parts[0] == "forget" {
			h.number(parts[2], parseNumber(parts[3]))
		}
	}
	for name, k := range h.x.etcd.keys {
		key(name, k.created)
	}
	low := h.x.etcd.revision
	for _, p := range h.x.processes {
		low = min(low, p.view)
		for name, r := range p.c.view.claims {
			key(name, r.token)
		}
		h.number(p.c.view.session, p.c.sent)
		h.number(p.c.view.session, p.c.view.record.write)
		if p.c.pending != nil {
			h.write(p.c.pending)
		}
	}
	for _, w := range h.x.net {
		h.write(&w.write)
	}
	for _, events := range h.x.etcd.log[low+1:] {
		for _, e := range events {
			key(e.Key, e.Created)
		}
	}
	slices.Sort(h.tokens)
	h.tokens = slices.Compact(h.tokens)
	for s, all := range h.numbers {
		slices.Sort(all)
		h.numbers[s] = slices.Compact(all)
	}
}

func parseNumber(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func (h *hasher) number(session string, n int64) { h.numbers[session] = append(h.numbers[session], n) }

func (h *hasher) write(w *write) {
	h.number(w.Session, w.N)
	for _, left := range w.Left {
		h.number(w.Session, left.N)
	}
	if w.Record > 0 {
		h.number(w.Session, w.Record)
	}
}

func (h *hasher) add(values ...int) {
	for _, v := range values {
		h.b = append(h.b, byte(v))
	}
}

func (h *hasher) addBools(values ...bool) {
	for _, v := range values {
		if v {
			h.add(1)
		} else {
			h.add(0)
		}
	}
}

func index(all *[]string, name string) int {
	i := slices.Index(*all, name)
	if i < 0 {
		i = len(*all)
		*all = append(*all, name)
	}
	return i
}

func (h *hasher) addWrite(session string, n int64) {
	rank, _ := slices.BinarySearch(h.numbers[session], n)
	h.add(index(&h.sessions, session), rank)
}

func (h *hasher) addToken(token int64) {
	rank, _ := slices.BinarySearch(h.tokens, token)
	h.add(rank)
}

// addIDs adds ids, whose order does not matter. Ids differ in their first byte.
func (h *hasher) addIDs(ids []string) {
	h.add(len(ids))
	from := len(h.b)
	for _, id := range ids {
		h.addID(id)
	}
	slices.Sort(h.b[from:])
}

func (h *hasher) addID(id string) { h.b = append(h.b, h.renamed(id)[0]) }

// renamed returns the id that id stands for.
func (h *hasher) renamed(id string) string {
	switch {
	case h.swapped && id == "a":
		return "b"
	case h.swapped && id == "b":
		return "a"
	}
	return id
}

func (h *hasher) addKey(name string, ids []string, created int64) {
	parts := strings.Split(name, "/")
	h.b = append(h.b, parts[0][0])
	switch parts[0] {
	case "session":
		h.add(index(&h.sessions, parts[1]))
	case "window":
		h.add(index(&h.windows, parts[1]))
	case "claim":
		h.addWrite(parts[1], parseNumber(parts[2]))
		h.addToken(created)
	case "done", "forget":
		h.add(index(&h.windows, parts[1]))
		h.addWrite(parts[2], parseNumber(parts[3]))
	}
	h.addIDs(ids)
}

func (h *hasher) encode(first int) []byte {
	x := h.x
	h.b, h.sessions, h.windows = h.b[:0], h.sessions[:0], h.windows[:0]
	h.add(x.acked, x.dead, len(x.queue))
	h.addIDs(x.queue)
	h.addBools(x.hurt)
	for _, id := range x.etcd.ids {
		id = h.renamed(id)
		h.add(min(x.works[id], 2+x.ended[id]), x.ended[id], x.expired[id], x.etcd.recorded[id])
	}
	for i := range x.processes {
		h.addProcess(x.processes[(i+first)%2])
	}
	for _, name := range slices.Sorted(maps.Keys(x.etcd.keys)) {
		k := x.etcd.keys[name]
		h.addKey(name, k.ids, k.created)
	}
	for i := range x.processes {
		h.addTail(x.processes[(i+first)%2])
	}
	for i, lease := range x.etcd.leases {
		if lease.living && !lease.session {
			h.add(index(&h.windows, leaseName(clientLease(i+1))))
		}
	}
	return h.addNet()
}
