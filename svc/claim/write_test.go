package claim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// records returns how many ids each record lists whose key begins with prefix, in order of size.
func (x *pair) records(prefix string) (sizes []int) {
	for key, k := range x.etcd.keys {
		if strings.HasPrefix(key, prefix) {
			sizes = append(sizes, len(k.ids))
		}
	}
	slices.Sort(sizes)
	return sizes
}

// Lone ids are added to the session's last record until that lists 16, also after the view was
// read anew. A new session begins a record of its own.
func TestSmallRecords(t *testing.T) {
	x := newPair(t)
	for i := range 41 {
		switch {
		case i == 40:
			x.a.nextSession()
		case i%10 == 9:
			x.a.load()
		}
		x.a.c.finish(x.grant(x.a, fmt.Sprint(i)))
		x.runUntilIdle()
	}
	if sizes := x.records("done/"); !slices.Equal(sizes, []int{1, 8, 16, 16}) {
		t.Errorf("the records list %v ids", sizes)
	}
	if n := x.b.c.Remembered(); n != 41 {
		t.Errorf("%d ids are done", n)
	}
}

// A window takes ids until its time is over or it has no room left.
func TestNeedsWindow(t *testing.T) {
	now := time.Now()
	tests := map[string]struct {
		window recordWindow
		want   bool
	}{
		"none":          {recordWindow{}, true},
		"for ever":      {recordWindow{Name: forever, Room: 1}, false},
		"before":        {recordWindow{Name: "w", Until: now.Add(time.Hour), Room: 1}, false},
		"its time over": {recordWindow{Name: "w", Until: now, Room: 1}, true},
		"full":          {recordWindow{Name: "w", Until: now.Add(time.Hour), Room: 0}, true},
	}
	for name, tt := range tests {
		x := newPair(t)
		c := x.grant(x.a, "1")
		x.a.c.setWindow(tt.window)
		if x.a.c.needsWindow() {
			t.Errorf("%s: a window is needed although there is nothing to record", name)
		}
		x.a.c.finish(c)
		if got := x.a.c.needsWindow(); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
		if sent := x.a.c.compose(); (sent == nil) != tt.want { // an id finished after a look at the window
			t.Errorf("%s: the next write is %+v", name, sent)
		}
	}
}

// A write does not put more ids into a window than it has room for.
func TestRoomOfAWindow(t *testing.T) {
	x := newPair(t)
	var granted []*Claim
	for i := range 10 {
		granted = append(granted, x.grant(x.a, fmt.Sprint(i)))
	}
	x.a.c.setWindow(recordWindow{Name: "w", Lease: x.etcd.grant(false), Room: 7})
	for _, c := range granted {
		x.a.c.finish(c)
	}
	x.runUntilIdle()
	if all, first := x.records("done/"), x.records("done/w/"); !slices.Equal(all, []int{3, 7}) || !slices.Equal(first, []int{7}) {
		t.Errorf("%v ids are recorded, %v of them in the window", all, first)
	}
}

// A write has at most 48 operations and 256 KiB of JSON, however many ids are claimed
// and completed and in whatever order. Every id is recorded.
func TestWriteLimits(t *testing.T) {
	tests := map[string]struct {
		ids, batch int    // the number of ids, and the maximum claimed at once
		id         string // prefix of each id; a number follows
	}{
		"short ids":                  {10_000, 3000, ""},
		"long ids":                   {1000, 300, strings.Repeat("x", 500)},
		"ids of control characters":  {500, 300, strings.Repeat("\x01", 500)},
		"ids of HTML":                {1000, 300, strings.Repeat("<&>", 160)},
		"ids of line separators":     {500, 300, strings.Repeat("\u2028", 160)},
		"ids of quotes and Japanese": {1000, 300, strings.Repeat(`"注\`, 100)},
		"claims of few ids":          {2000, 3, ""},
		"claims of few long ids":     {2000, 3, strings.Repeat("x", 500)},
		"lone ids of great length":   {40, 1, strings.Repeat("\x01", 9998)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := newPair(t)
			var claimed []*Claim
			random := rand.New(rand.NewPCG(1, 2))
			for from := 0; from < tt.ids || len(claimed) > 0; {
				for range min(1+random.IntN(tt.batch), tt.ids-from) {
					claimed = append(claimed, x.a.c.enqueue(fmt.Sprint(tt.id, from)))
					from++
				}
				x.runUntilIdle()
				random.Shuffle(len(claimed), func(i, j int) { claimed[i], claimed[j] = claimed[j], claimed[i] })
				ending := claimed
				if from < tt.ids {
					ending = claimed[:random.IntN(len(claimed)+1)]
				}
				if len(ending) < 200 && from < tt.ids { // let more claims gather
					ending = nil
				}
				claimed = claimed[len(ending):]
				for _, c := range ending {
					x.expect(c, "granted")
					x.a.c.finish(c)
				}
				x.runUntilIdle()
				for _, c := range ending {
					x.expect(c, "granted") // recorded
				}
			}
			maxOps, maxBytes := 0, 0
			for _, events := range x.etcd.log {
				bytes := 0
				for _, e := range events {
					bytes += len(e.Value)
				}
				maxOps, maxBytes = max(maxOps, len(events)), max(maxBytes, bytes)
			}
			if maxOps > 48 || maxBytes > 256<<10 {
				t.Errorf("writes have up to %d operations and %d bytes", maxOps, maxBytes)
			}
			t.Logf("%d writes, of %d operations and %d bytes at most", x.etcd.revision, maxOps, maxBytes)
			if n := x.b.c.Remembered(); n != tt.ids {
				t.Errorf("%d ids are recorded of %d", n, tt.ids)
			}
			if n := len(x.a.c.entries); n > 0 {
				t.Errorf("%d entries are left", n)
			}
		})
	}
}

// jsonSize is at least the size of an id in a list.
func FuzzJSONSize(f *testing.F) {
	for _, id := range []string{"", "a", "\x00", "\x1f\x7f", `"\/`, "<>&", "é", "注文", "\u2028\u2029", "😀", "\t\n\r\b\f"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if !utf8.ValidString(id) {
			t.Skip("a body that is not UTF-8 is malformed")
		}
		if list, size := listJSON([]string{id, id}), jsonSize(id); len(list)-len("[]")+len(",") > 2*size {
			t.Errorf("%q takes %d bytes twice, bound %d", id, len(list)-1, 2*size)
		}
	})
}
