package claim

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// An id takes at most 48 bytes of heap, whatever the size of the set, whether the ids
// are added one by one or loaded at once.
func TestDoneSetHeap(t *testing.T) {
	const most, step = 1_000_000, 100_000
	ids := make([]string, most)
	for i := range ids {
		ids[i] = fmt.Sprintf("%010d", i)
	}
	check := func(t *testing.T, before uint64, n int) {
		if perID := float64(heap()-before) / float64(n); perID > 48 {
			t.Errorf("%.1f bytes an id with %d ids", perID, n)
		} else if n == most {
			t.Logf("%.1f bytes an id with %d ids", perID, n)
		}
	}
	t.Run("followed", func(t *testing.T) {
		before := heap()
		s := newDoneSet()
		s.begin("w", 1)
		for i, id := range ids {
			s.add(id, "w")
			if n := i + 1; n%step == 0 && n >= most/2 {
				check(t, before, n)
			}
		}
		runtime.KeepAlive(s)
	})
	t.Run("read", func(t *testing.T) {
		before := heap()
		s := newDoneSet()
		s.load()
		s.begin("w", 1)
		for _, id := range ids {
			s.add(id, "w")
		}
		s.endLoad()
		check(t, before, most)
		runtime.KeepAlive(s)
	})
	runtime.KeepAlive(ids)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The ids of a window are forgotten at once when it ends. Their memory is free after
// as many sweeps as there are shards.
func TestSweep(t *testing.T) {
	const ids = 10_000
	s := newDoneSet()
	s.begin("old", 1)
	s.begin("new", 2)
	for i := range ids {
		s.add(fmt.Sprint("old", i), "old")
		s.add(fmt.Sprint("new", i), "new")
	}
	s.end("old")
	if s.living != ids || s.has("old1") || !s.has("new1") {
		t.Fatalf("%d ids are done after the end of the window; old: %t, new: %t", s.living, s.has("old1"), s.has("new1"))
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
	if s.living != ids+1 || !s.has("old1") || s.has("old2") || !s.has("new1") {
		t.Errorf("%d ids are done after the sweep", s.living)
	}
	if len(s.windows) != 2 {
		t.Errorf("%d windows are kept", len(s.windows))
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
		living := s.livingWindows()
		var names []string
		for _, w := range living {
			names = append(names, w.name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("the living windows are %q, want %q", got, want)
		}
		if len(living) > 0 {
			s.end(living[0].name)
		}
	}
}
