package claim

import (
	"fmt"
	"testing"
)

// A set that was loaded at once gives the same answers and counts as one built with add.
func TestLoadedSet(t *testing.T) {
	added, read := newDoneSet(), newDoneSet()
	read.load()
	for _, s := range []*doneSet{added, read} {
		s.begin("old", 1)
		s.begin("new", 2)
		for i := range 5000 {
			s.add(fmt.Sprint(i), "old")
			s.add(fmt.Sprint(i+2500), "new") // half of these ids are in both windows
		}
		s.add("lost", "gone") // a window without its key
	}
	read.endLoad()
	for range 2 {
		if added.living != read.living || added.total != read.total {
			t.Errorf("%d of %d ids are living, want %d of %d", read.living, read.total, added.living, added.total)
		}
		for i := range 8000 {
			if id := fmt.Sprint(i); added.has(id) != read.has(id) {
				t.Fatalf("id %s: %t, want %t", id, read.has(id), added.has(id))
			}
		}
		if read.has("lost") {
			t.Error("an id of a window that has ended is done")
		}
		added.end("old")
		read.end("old")
	}
}
