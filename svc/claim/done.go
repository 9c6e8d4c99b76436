package claim

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// shards is the number of maps that the set is divided into, so that the ids of
// ended windows can be removed in small steps.
const shards = 1024

// doneSet holds the ids that are done, each with the window that lists it.
//
// An id is kept as a 128-bit hash under two random seeds: no sender can choose
// ids that collide, and among a billion ids two collide by chance with a
// probability of 1e-21. It takes 48 bytes of heap at most, and no pointer that
// the garbage collector would have to follow.
type doneSet struct {
	seeds   [2]maphash.Seed
	shards  [shards]map[hash]uint32 // to the number of the window
	windows map[uint32]*window
	numbers map[string]uint32 // of the windows
	last    uint32            // number given
	total   int               // ids in the shards
	living  int               // those of living windows
	cursor  int               // the shard that was swept last
	unswept int               // how many shards may hold ids of ended windows
	loading *[shards][]loaded // not nil during a load
}

// loaded is an id that is not in its shard yet.
type loaded struct {
	h      hash
	window uint32
}

type hash [16]byte

// window counts the ids of one window.
type window struct {
	name    string
	created int64 // CreateRevision of its key; 0: the key was not seen, or is gone
	ids     int
}

func newDoneSet() *doneSet {
	s := &doneSet{
		seeds:   [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		windows: make(map[uint32]*window), numbers: make(map[string]uint32),
	}
	for i := range s.shards {
		s.shards[i] = make(map[hash]uint32)
	}
	return s
}

func (s *doneSet) hash(id string) (h hash, shard map[hash]uint32) {
	first := maphash.String(s.seeds[0], id)
	binary.LittleEndian.PutUint64(h[:8], first)
	binary.LittleEndian.PutUint64(h[8:], maphash.String(s.seeds[1], id))
	return h, s.shards[first%shards]
}

func (s *doneSet) has(id string) bool {
	h, shard := s.hash(id)
	n, ok := shard[h]
	return ok && s.windows[n].created > 0
}

// add notes that a record of the named window lists id. If two living windows list
// an id, the first one counts.
func (s *doneSet) add(id, name string) {
	n := s.number(name)
	h, shard := s.hash(id)
	if s.loading != nil {
		at := &s.loading[binary.LittleEndian.Uint64(h[:])%shards]
		*at = append(*at, loaded{h, n})
		s.living++
		return
	}
	s.put(shard, h, n)
}

func (s *doneSet) put(shard map[hash]uint32, h hash, n uint32) {
	if old, ok := shard[h]; ok {
		if old == n || s.windows[old].created > 0 {
			return
		}
		s.removed(old)
	}
	shard[h] = n
	s.windows[n].ids++
	s.total++
	if s.windows[n].created > 0 {
		s.living++
	}
}

// remove takes out an id that a record of the named window listed.
func (s *doneSet) remove(id, name string) {
	h, shard := s.hash(id)
	n, ok := shard[h]
	if !ok || n != s.numbers[name] {
		return
	}
	delete(shard, h)
	if s.windows[n].created > 0 {
		s.living--
	}
	s.removed(n)
}

// load makes add gather ids. endLoad puts them into the shards, one shard at a
// time, because with many millions of ids nearly every access to another shard
// misses the processor's caches. Until endLoad, has does not know the ids.
func (s *doneSet) load() { s.loading = new([shards][]loaded) }

func (s *doneSet) endLoad() {
	gathered := s.loading
	s.loading, s.living = nil, 0
	for i, ids := range gathered {
		s.shards[i] = make(map[hash]uint32, len(ids))
		for _, id := range ids {
			s.put(s.shards[i], id.h, id.window)
		}
		gathered[i] = nil
	}
}

// number returns the number of a window that has not ended.
func (s *doneSet) number(name string) uint32 {
	n, ok := s.numbers[name]
	if !ok {
		s.last++
		n = s.last
		s.numbers[name], s.windows[n] = n, &window{name: name}
	}
	return n
}

// begin notes that a window's key exists.
func (s *doneSet) begin(name string, created int64) {
	w := s.windows[s.number(name)]
	if w.created == 0 {
		s.living += w.ids
	}
	w.created = created
}

// lives reports whether a window's key exists.
func (s *doneSet) lives(name string) bool {
	n, ok := s.numbers[name]
	return ok && s.windows[n].created > 0
}

// end forgets all ids of a window at once. Their memory is used again after a
// sweep.
func (s *doneSet) end(name string) {
	n, ok := s.numbers[name]
	if !ok {
		return
	}
	w := s.windows[n]
	if w.created > 0 {
		s.living -= w.ids
	}
	w.created = 0
	delete(s.numbers, name)
	if w.ids == 0 {
		delete(s.windows, n)
	}
	s.unswept = shards
}

// sweep removes the ids of ended windows from the next shards, and visits all of them before
// the set has grown by half. added is how many ids were added since the last call.
func (s *doneSet) sweep(added int) {
	for steps := 1 + 2*shards*added/(1+s.total); steps > 0 && s.unswept > 0; steps-- {
		s.unswept--
		s.cursor = (s.cursor + 1) % shards
		shard := s.shards[s.cursor]
		for h, n := range shard {
			if s.ended(n) {
				delete(shard, h)
				s.removed(n)
			}
		}
	}
}

// removed notes that an id of an ended window was removed. The window goes with its last
// id.
func (s *doneSet) removed(n uint32) {
	w := s.windows[n]
	s.total--
	if w.ids--; w.ids == 0 && s.ended(n) {
		delete(s.windows, n)
	}
}

func (s *doneSet) ended(n uint32) bool { return s.numbers[s.windows[n].name] != n }

// livingWindows returns the living windows, the oldest first, without the window forever.
func (s *doneSet) livingWindows() (living []window) {
	for _, w := range s.windows {
		if w.created > 0 && w.name != forever {
			living = append(living, *w)
		}
	}
	slices.SortFunc(living, func(a, b window) int { return cmp.Compare(a.created, b.created) })
	return living
}
