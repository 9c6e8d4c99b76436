package claim

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// generations is into how many parts the cache is divided by size, and the
// window by time: what is dropped at once when the cache is full, and by how
// much of the window an entry may end before its record does. A miss looks
// into each generation, so they are few.
const generations = 8

// Cache knows ids that are done, so that a duplicate is skipped without asking
// etcd. It is an accelerator and nothing else: a hit is as true as the record
// behind it, a miss says nothing.
//
// An id is kept as a 128-bit hash under two random seeds: no sender can choose
// ids that collide, and at a billion ids two collide by chance with a
// probability of 1e-21. An entry never outlives its record: it lives in a
// generation which ends, as a whole, before the record can.
type Cache struct {
	size   int
	slice  time.Duration // by which lives are rounded down; 0: all are for ever
	window time.Duration // the longest life; 0: for ever
	seeds  [2]maphash.Seed
	start  time.Time

	mu    sync.RWMutex
	gens  []*generation // oldest first
	count int
}

type fingerprint [16]byte

// generation is some ids whose records all live at least until end.
type generation struct {
	slot int64 // end in slices since the cache's start
	ids  map[fingerprint]struct{}
}

// NewCache returns a cache of at most size ids that are remembered for window
// (0: for ever).
func NewCache(size int, window time.Duration) *Cache {
	return &Cache{
		size: size, window: window, slice: window / generations, start: time.Now(),
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
	}
}

func (c *Cache) hash(id string) (f fingerprint) {
	binary.LittleEndian.PutUint64(f[:8], maphash.String(c.seeds[0], id))
	binary.LittleEndian.PutUint64(f[8:], maphash.String(c.seeds[1], id))
	return f
}

// Has reports whether id is known to be done.
func (c *Cache) Has(id string) bool {
	f := c.hash(id)
	now := c.now()
	c.mu.RLock()
	defer c.mu.RUnlock()
	for i := len(c.gens) - 1; i >= 0; i-- {
		if g := c.gens[i]; g.slot > now {
			if _, ok := g.ids[f]; ok {
				return true
			}
		}
	}
	return false
}

// Add notes that id is done and that its record lives for life at least.
func (c *Cache) Add(id string, life time.Duration) {
	if c.size == 0 {
		return
	}
	f := c.hash(id)
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	slot := c.slot(life)
	if slot <= now {
		return
	}
	g := c.generation(slot)
	before := len(g.ids)
	g.ids[f] = struct{}{}
	c.count += len(g.ids) - before
}

// Len returns how many ids are kept.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.count
}

// Full reports whether another id would drive an older one out.
func (c *Cache) Full() bool { return c.Len() >= c.size }

// now returns the slice of time that has begun last. An entry is good while
// its slot is later.
func (c *Cache) now() int64 {
	if c.slice == 0 {
		return 0
	}
	return int64(time.Since(c.start) / c.slice)
}

// slot returns the slice of time at whose beginning an entry of that life ends.
func (c *Cache) slot(life time.Duration) int64 {
	if c.slice == 0 {
		if life == Forever {
			return 1
		}
		return 0
	}
	return int64((time.Since(c.start) + min(life, c.window)) / c.slice)
}

// generation returns the youngest generation of that slot that has room, or a
// new one.
func (c *Cache) generation(slot int64) *generation {
	for c.count >= c.size { // oldest out first
		c.drop(0)
	}
	share := max(1, c.size/generations)
	for i := len(c.gens) - 1; i >= 0; i-- {
		if g := c.gens[i]; g.slot == slot && len(g.ids) < share {
			return g
		}
	}
	g := &generation{slot: slot, ids: make(map[fingerprint]struct{})}
	c.gens = append(c.gens, g)
	return g
}

func (c *Cache) expire(now int64) {
	for i := len(c.gens) - 1; i >= 0; i-- {
		if c.gens[i].slot <= now {
			c.drop(i)
		}
	}
}

func (c *Cache) drop(i int) {
	c.count -= len(c.gens[i].ids)
	c.gens = slices.Delete(c.gens, i, i+1)
}
