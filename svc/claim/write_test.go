package claim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// opsOf counts the operations of the transaction that Etcd.send makes of a write.
func opsOf(w *write) int {
	n := 1 + len(w.Left)
	for _, there := range []bool{len(w.Claim) > 0, len(w.Done) > 0, w.NewWindow} {
		if there {
			n++
		}
	}
	return n
}

// bytesOf counts the bytes of JSON in a write.
func bytesOf(w *write) int {
	n := len(listJSON(w.Claim)) + len(listJSON(w.Done))
	for _, left := range w.Left {
		if len(left.IDs) > 0 {
			n += len(listJSON(left.IDs))
		}
	}
	return n
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
		"lone ids of great length":   {40, 1, strings.Repeat("\x01", 9000)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			all := make([]string, tt.ids)
			for i := range all {
				all[i] = fmt.Sprint(tt.id, i)
			}
			random := rand.New(rand.NewPCG(1, 2))
			var granted []*Claim
			for from := 0; from < len(all) || len(granted) > 0; {
				for range min(1+random.IntN(tt.batch), len(all)-from) {
					granted = append(granted, d.c.enqueue(all[from]))
					from++
				}
				d.pump()
				random.Shuffle(len(granted), func(i, j int) { granted[i], granted[j] = granted[j], granted[i] })
				ending := granted
				if from < len(all) {
					ending = granted[:random.IntN(len(granted)+1)]
				}
				if len(ending) < 200 && from < len(all) { // let more claims gather
					ending = nil
				}
				granted = granted[len(ending):]
				for _, c := range ending {
					d.finish(c)
				}
				d.pump()
			}
			if d.maxOps > 48 || d.maxBytes > 256<<10 {
				t.Errorf("writes have up to %d operations and %d bytes", d.maxOps, d.maxBytes)
			}
			t.Logf("%d writes, of %d operations and %d bytes at most", d.writes, d.maxOps, d.maxBytes)
			for _, id := range all {
				if !d.c.view.Done(id) {
					t.Fatalf("%q is not recorded", id)
				}
			}
			if n := len(d.c.entries); n > 0 {
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
