package claim

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// fills fill a set with n ids of a window, one by one or at once.
var fills = map[string]func(s *doneSet, add func()){
	"followed": func(s *doneSet, add func()) { add() },
	"read": func(s *doneSet, add func()) {
		s.load()
		add()
		s.endLoad()
	},
}

// An id takes at most 48 bytes of heap, whatever the size of the set.
func TestDoneSetHeap(t *testing.T) {
	const most, step = 1_000_000, 100_000
	ids := make([]string, most)
	for i := range ids {
		ids[i] = fmt.Sprintf("%010d", i)
	}
	for name, fill := range fills {
		t.Run(name, func(t *testing.T) {
			before := heap()
			s := newDoneSet()
			s.begin("w", 1)
			check := func(n int) {
				perID := float64(heap()-before) / float64(n)
				if t.Logf("%.1f bytes an id with %d ids", perID, n); perID > 48 {
					t.Error("they are more than 48")
				}
			}
			fill(s, func() {
				for i, id := range ids {
					s.add(id, "w")
					if n := i + 1; s.loading == nil && n%step == 0 && n >= most/2 {
						check(n)
					}
				}
			})
			check(most)
			runtime.KeepAlive(s)
		})
	}
	runtime.KeepAlive(ids)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The ids of a window are forgotten at once when it ends. Their memory is free after
// as many sweeps as there are shards. Of two living windows that list an id the first one counts, and of a
// living and another the living one.
func TestSweep(t *testing.T) {
	const ids = 10_000
	for name, fill := range fills {
		t.Run(name, func(t *testing.T) {
			s := newDoneSet()
			fill(s, func() {
				s.begin("old", 1)
				s.begin("new", 2)
				s.add("new1", "gone") // a window without its key
				s.add("lost", "gone")
				for i := range ids {
					s.add(fmt.Sprint("old", i), "old")
					s.add(fmt.Sprint("new", i), "new")
				}
				s.add("old2", "new")
			})
			if s.living != 2*ids || s.total != s.size() || s.has("lost") || !s.has("old1") {
				t.Fatalf("%d ids are done; lost: %t, old: %t", s.living, s.has("lost"), s.has("old1"))
			}
			s.end("gone")
			s.end("old")
			if s.living != ids || s.has("old1") || s.has("old2") || !s.has("new1") {
				t.Fatalf("%d ids are done after the end of the window; old: %t, %t, new: %t", s.living, s.has("old1"), s.has("old2"), s.has("new1"))
			}
			s.begin("third", 3)
			s.add("old1", "third") // before the old entry is swept
			for i := range shards {
				before := s.size()
				s.sweep(0)
				if swept := before - s.size(); swept > 10*ids/shards {
					t.Errorf("step %d sweeps %d ids", i, swept)
				}
			}
			if n := s.size(); n != ids+1 || s.total != n {
				t.Errorf("%d ids are kept after the sweep, want %d; counted: %d", n, ids+1, s.total)
			}
			if s.living != ids+1 || !s.has("old1") || s.has("old3") || !s.has("new1") {
				t.Errorf("%d ids are done after the sweep", s.living)
			}
			if len(s.windows) != 2 {
				t.Errorf("%d windows are kept", len(s.windows))
			}
		})
	}
}

// size returns how many ids are held, those of ended windows included.
func (s *doneSet) size() (n int) {
	for _, shard := range s.shards {
		n += len(shard)
	}
	return n
}

// The memory of ended windows is free again even if the next one ends before all shards
// are swept.
func TestWindowsEndOften(t *testing.T) {
	const windows, ids, living = 500, 300, 8
	s := newDoneSet()
	for w := range windows {
		s.begin(fmt.Sprint(w), int64(w+1))
		for i := range ids {
			s.add(fmt.Sprint(w, "/", i), fmt.Sprint(w))
		}
		s.sweep(ids)
		s.end(fmt.Sprint(w - living))
	}
	if n := s.size(); n > 2*living*ids || s.total != n || len(s.windows) > 2*living {
		t.Errorf("%d ids in %d windows are held, of which %d are done; counted: %d", n, len(s.windows), s.living, s.total)
	}
}

// The living windows are in the order of their keys. The window that never ends is not among
// them.
func TestLivingWindows(t *testing.T) {
	s := newDoneSet()
	s.begin(forever, 1)
	s.add("ever", forever)
	for i, name := range []string{"c", "a", "b"} {
		s.begin(name, int64(10-i))
		s.add(name, name)
	}
	s.add("x", "unseen")
	for _, want := range []string{"b a c", "a c", "c", ""} {
		var names []string
		for _, w := range s.livingWindows() {
			names = append(names, w.name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Fatalf("the living windows are %q, want %q", got, want)
		}
		if len(names) > 0 {
			s.end(names[0])
		}
	}
}
