package claim_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
)

func TestCacheIsBounded(t *testing.T) {
	for _, size := range []int{0, 1, 2, 7, 8, 9, 15, 100} {
		for _, window := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprint(size, " for ", window), func(t *testing.T) {
				c := claim.NewCache(size, window)
				share := max(1, size/8) // may be dropped at once
				for n := range 3*size + 3 {
					c.Add(strconv.Itoa(n), claim.Forever)
					if len := c.Len(); len > size || len < min(n+1, size-share) {
						t.Fatalf("%d ids are kept after %d, the size is %d", len, n+1, size)
					}
					if c.Full() != (c.Len() == size) {
						t.Fatalf("full is %v with %d of %d ids", c.Full(), c.Len(), size)
					}
					oldest := n + 1 - c.Len()
					for m := range n + 1 { // oldest out first
						if has := c.Has(strconv.Itoa(m)); has != (m >= oldest) {
							t.Fatalf("has %d of %d: %v; it keeps %d", m, n+1, has, c.Len())
						}
					}
				}
			})
		}
	}
}

func TestCacheLife(t *testing.T) {
	const h = time.Hour
	tests := map[string]struct {
		window, life time.Duration
		has          time.Duration // it is kept at least as long
		gone         time.Duration // and not as long
	}{
		"for ever":                        {window: 0, life: claim.Forever, has: 1000 * h, gone: math.MaxInt64},
		"a lease when the rest has none":  {window: 0, life: h, gone: 0},
		"no lease when the rest has":      {window: 8 * h, life: claim.Forever, has: 7*h - 1, gone: 8 * h},
		"the window":                      {window: 8 * h, life: 8 * h, has: 7*h - 1, gone: 8 * h},
		"half of the window":              {window: 8 * h, life: 4 * h, has: 3*h - 1, gone: 4 * h},
		"more than the window":            {window: 8 * h, life: 9 * h, has: 7*h - 1, gone: 8 * h},
		"an eighth of the window":         {window: 8 * h, life: h, has: 0, gone: h},
		"too little to tell":              {window: 8 * h, life: h / 2, has: 0, gone: h / 2},
		"nothing left":                    {window: 8 * h, life: 0, gone: 0},
		"expired":                         {window: 8 * h, life: -h, gone: 0},
		"unknown":                         {window: 8 * h, life: time.Until(time.Time{}), gone: 0},
		"unknown when all are for ever":   {window: 0, life: time.Until(time.Time{}), gone: 0},
		"a window that does not divide":   {window: 1000*time.Second + 1, life: 999 * time.Second, has: 874 * time.Second, gone: 999 * time.Second},
		"the shortest window that is one": {window: 8, life: 8, has: 6, gone: 8},
	}
	for name, tt := range tests {
		for _, age := range []time.Duration{0, 1, 30 * time.Minute, 59 * time.Minute, 1e6 * time.Second} { // of the cache
			t.Run(fmt.Sprint(name, " after ", age), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := claim.NewCache(10, tt.window)
					<-time.After(age)
					c.Add("1", tt.life)
					if tt.has > 0 {
						<-time.After(tt.has)
						if !c.Has("1") {
							t.Errorf("gone after %v", tt.has)
						}
					}
					if tt.gone == math.MaxInt64 {
						return
					}
					<-time.After(tt.gone - tt.has)
					if c.Has("1") {
						t.Errorf("still there after %v", tt.gone)
					}
				})
			})
		}
	}
}

// Room that expired ids take is given to new ones first.
func TestCacheDropsExpiredFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := claim.NewCache(16, 8*time.Hour)
		for n := range 8 {
			c.Add(fmt.Sprint("long ", n), 8*time.Hour)
		}
		for n := range 8 {
			c.Add(fmt.Sprint("short ", n), 2*time.Hour)
		}
		<-time.After(2 * time.Hour)
		for n := range 8 {
			c.Add(fmt.Sprint("new ", n), 8*time.Hour)
		}
		for n := range 8 {
			if !c.Has(fmt.Sprint("long ", n)) || !c.Has(fmt.Sprint("new ", n)) || c.Has(fmt.Sprint("short ", n)) {
				t.Error("the wrong ids were dropped")
			}
		}
	})
}

// Whatever is added when: an id that is found is done and its record is still
// there, and there are never too many.
func TestCacheAgainstModel(t *testing.T) {
	windows := []time.Duration{0, 3 * time.Second, time.Minute, 24 * time.Hour}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				size, window := 1+rnd.IntN(60), windows[rnd.IntN(len(windows))]
				c := claim.NewCache(size, window)
				ends := make(map[string]time.Time) // of the records
				for range 2000 {
					id := strconv.Itoa(rnd.IntN(100))
					switch rnd.IntN(10) {
					case 0:
						<-time.After(time.Duration(rnd.Int64N(int64(max(window/4, time.Second)))))
					case 1, 2, 3, 4:
						life := time.Duration(rnd.Int64N(int64(max(2*window, time.Minute))))
						if rnd.IntN(4) == 0 {
							life = claim.Forever
						}
						c.Add(id, life)
						if end := time.Now().Add(min(life, 1e6*time.Hour)); end.After(ends[id]) {
							ends[id] = end
						}
						slice := window / 8
						if kept := window == 0 && life == claim.Forever || window > 0 && min(life, window) > slice; kept && !c.Has(id) {
							t.Fatalf("%s is not there after it was added for %v", id, life)
						}
					default:
						if c.Has(id) && !time.Now().Before(ends[id]) {
							t.Fatalf("%s outlives its record by %v", id, time.Since(ends[id]))
						}
					}
					if c.Len() > size {
						t.Fatalf("%d ids in a cache of %d", c.Len(), size)
					}
				}
			})
		})
	}
}

func TestCacheOfIDsThatDiffer(t *testing.T) {
	c := claim.NewCache(1_000_000, 0)
	strange := []string{"a", "A", "a/", "/a", "a//b", "a\x00", "a\x00\x00", "\x00", "\x00\x00", "", " ", "  ", "a ", " a", "%61", "\u00e1", "a\u0301",
		strings.Repeat("x", 511), strings.Repeat("x", 512), strings.Repeat("x", 510) + "y"}
	for i := range strange {
		if c.Has(strange[i]) {
			t.Errorf("%.20q is taken for another", strange[i])
		}
		c.Add(strange[i], claim.Forever)
		if !c.Has(strange[i]) {
			t.Errorf("%.20q is not found", strange[i])
		}
	}
	const n = 50_000
	for i := range n {
		c.Add("order-"+strconv.Itoa(i), claim.Forever)
	}
	for i := range n {
		if c.Has("order-" + strconv.Itoa(n+i)) {
			t.Fatalf("order-%d was never added", n+i)
		}
	}
	if want := n + len(strange); c.Len() != want {
		t.Errorf("%d of %d ids are kept", c.Len(), want)
	}
}

func TestCacheOfManyCallers(t *testing.T) {
	c := claim.NewCache(100, time.Hour)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				id := strconv.Itoa(i % 150)
				if g%2 == 0 {
					c.Add(id, time.Duration(i)*time.Second)
				}
				c.Has(id)
				if c.Len() > 100 {
					t.Error("too many")
				}
				c.Full()
			}
		})
	}
	wg.Wait()
}

// mostBytes is what an id may cost in memory.
const mostBytes = 40

func TestCacheMemory(t *testing.T) {
	if got := bytesPerID(1_000_000); got > mostBytes {
		t.Errorf("an id takes %.1f bytes, at most %d are allowed", got, mostBytes)
	}
}

// bytesPerID returns what an id costs in a cache that n ids fill.
func bytesPerID(n int) float64 {
	before := heap()
	c := claim.NewCache(n, 24*time.Hour)
	for i := range n {
		c.Add(strconv.Itoa(i), 24*time.Hour)
	}
	bytes := heap() - before
	kept := c.Len()
	runtime.KeepAlive(c)
	return float64(bytes) / float64(kept)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// go test -run=- -bench=Cache ./svc/claim
func BenchmarkCacheMemory(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000, 3_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var got float64
			for b.Loop() {
				got = bytesPerID(n)
			}
			b.ReportMetric(got, "B/id")
		})
	}
}

func BenchmarkCacheHas(b *testing.B) {
	c, ids := filled()
	b.Run("hit", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c.Has(ids[i%len(ids)])
		}
	})
	b.Run("miss", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c.Has(ids[i%len(ids)][1:])
		}
	})
	b.Run("hit by all", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				c.Has(ids[i%len(ids)])
			}
		})
	})
}

func BenchmarkCacheAdd(b *testing.B) {
	c, ids := filled()
	b.Run("new", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c.Add(strconv.Itoa(i), 24*time.Hour)
		}
	})
	b.Run("known", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c.Add(ids[i%len(ids)], 24*time.Hour)
		}
	})
}

// filled returns a cache of a million ids that is full, and the ids.
func filled() (*claim.Cache, []string) {
	c := claim.NewCache(1_000_000, 24*time.Hour)
	ids := make([]string, 1_000_000)
	for i := range ids {
		ids[i] = "order-" + strconv.Itoa(i)
		c.Add(ids[i], 24*time.Hour)
	}
	return c, ids
}
