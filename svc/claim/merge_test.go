package claim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// driver runs a claimer whose writes are carried out at once.
type driver struct {
	*simProcess
	t                        *testing.T
	writes, maxOps, maxBytes int
	all                      []*sessionWrite
}

func newDriver(t *testing.T) *driver {
	return &driver{simProcess: newPair(t).a, t: t}
}

func (d *driver) pump() {
	for d.canWrite() {
		if d.write(); d.c.pending() == nil {
			break
		}
		w := *d.c.pending()
		d.writes++
		d.maxOps, d.maxBytes = max(d.maxOps, opsOf(&w)), max(d.maxBytes, bytesOf(&w))
		d.all = append(d.all, &w)
		_, answer := d.x.execute(0)
		d.answer(answer)
		d.watch(d.x.etcd.revision - d.view)
	}
	if d.x.violation != "" {
		d.t.Fatal(d.x.violation)
	}
}

// finish finishes the work under a claim that must have been granted.
func (d *driver) finish(c *Claim) {
	d.t.Helper()
	if len(c.answer) == 0 {
		d.t.Fatalf("id %s is not granted", c.ID)
	}
	<-c.answer
	d.c.finish(c)
}

// done claims, works on and records one id, alone.
func (d *driver) done(id string) {
	w := d.c.enqueue(id)
	d.pump()
	d.finish(w)
	d.pump()
}

// records returns the ids of the records in etcd, by key.
func (d *driver) records() map[string][]string {
	records := make(map[string][]string)
	for key, k := range d.x.etcd.keys {
		if strings.HasPrefix(key, "done/") {
			records[key] = k.ids
		}
	}
	return records
}

// The records of lone ids are merged: one record under the last key replaces 64
// records and lists all their ids.
func TestLoneRecordsAreMerged(t *testing.T) {
	const n = 1000
	d := newDriver(t)
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i))
		d.done(fmt.Sprint(i))
		if records := len(d.records()); records > n/64+64 {
			t.Fatalf("%d records of %d ids", records, i+1)
		}
	}
	var listed []string
	for key, ids := range d.records() {
		if len(ids) != 1 && len(ids) != 64 {
			t.Errorf("%s lists %d ids", key, len(ids))
		}
		listed = append(listed, ids...)
	}
	slices.Sort(all)
	slices.Sort(listed)
	if !slices.Equal(all, listed) {
		t.Errorf("%d ids are listed of %d", len(listed), n)
	}
	for _, id := range all {
		if !d.c.state.Done(id) {
			t.Fatalf("%s is not done", id)
		}
	}
	put := 0
	for _, w := range d.all {
		put += len(w.Done)
	}
	if put > 3*n {
		t.Errorf("%d ids were written for %d", put, n)
	}
}

// Large records are not merged, so an id is not written again and again.
func TestLargeRecordsAreNotMerged(t *testing.T) {
	d := newDriver(t)
	for batch := range 100 {
		var asked []*Claim
		for i := range 100 {
			asked = append(asked, d.c.enqueue(fmt.Sprint(batch, "-", i)))
		}
		d.pump()
		for _, w := range asked {
			d.finish(w)
		}
		d.pump()
	}
	for _, w := range d.all {
		if w.MergedFrom > 0 {
			t.Fatalf("write %d merges %d ids", w.N, len(w.Done))
		}
	}
}

// Records of one window are not merged into another. A write that is refused because
// its window has ended records only its own ids, in the next window.
func TestWindowsAreNotMerged(t *testing.T) {
	d := newDriver(t)
	for i := range maxMerged - 1 {
		d.done(fmt.Sprint(i))
	}
	w := d.c.enqueue("last")
	d.pump()
	d.finish(w)
	d.write()
	if merged := d.c.pending(); len(merged.Done) != maxMerged || merged.MergedFrom == 0 {
		t.Fatalf("the write is %+v", merged)
	}
	d.x.etcd.end(d.c.pending().Window.Lease)
	_, answer := d.x.execute(0)
	d.answer(answer) // opens a new window and sends the write again
	moved := d.c.pending()
	if !slices.Equal(moved.Done, []string{"last"}) || moved.MergedFrom != 0 || !moved.NewWindow {
		t.Errorf("the write is now %+v", moved)
	}
	_, answer = d.x.execute(0)
	d.answer(answer)
	d.pump()
	d.watch(d.x.etcd.revision - d.view)
	if !d.c.state.Done("last") || d.c.state.Done("0") {
		t.Errorf("last is done: %t; 0, of the ended window, is done: %t", d.c.state.Done("last"), d.c.state.Done("0"))
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
		"before":        {recordWindow{Name: "w", Until: now.Add(1), Room: 1}, false},
		"its time over": {recordWindow{Name: "w", Until: now, Room: 1}, true},
		"full":          {recordWindow{Name: "w", Until: now.Add(1), Room: 0}, true},
	}
	for name, tt := range tests {
		d := newDriver(t)
		w := d.c.enqueue("1")
		d.pump()
		d.c.setWindow(tt.window)
		if d.c.needsWindow(now) {
			t.Errorf("%s: a window is needed although there is nothing to record", name)
		}
		d.finish(w)
		if got := d.c.needsWindow(now); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// An id that is finished between a look at the window and the next write is not recorded in
// a window whose time is over: it would be forgotten too early.
func TestFinishedInAnOldWindow(t *testing.T) {
	d := newDriver(t)
	d.done("1") // the window's key exists
	w := d.c.enqueue("2")
	d.pump()
	d.c.writer.window.Until = time.Now()
	d.finish(w)
	if n := d.c.next(); n != nil {
		t.Errorf("the next write records %v in window %s", n.Done, n.Window.Name)
	}
	old := d.c.writer.window.Name
	d.pump()
	if !d.c.state.Done("2") || d.c.writer.window.Name == old {
		t.Error("the id is not recorded in a new window")
	}
}

// A write does not put more ids into a window than it has room for.
func TestRoomOfAWindow(t *testing.T) {
	d := newDriver(t)
	var asked []*Claim
	for i := range 10 {
		asked = append(asked, d.c.enqueue(fmt.Sprint(i)))
	}
	d.pump()
	d.c.setWindow(recordWindow{Name: "w", Lease: d.x.etcd.grant(false), Room: 7})
	for _, w := range asked {
		d.finish(w)
	}
	d.pump()
	windows := make(map[string]int)
	for key, ids := range d.records() {
		windows[strings.Split(key, "/")[1]] += len(ids)
	}
	if len(windows) != 2 || windows["w"] != 7 {
		t.Errorf("ids by window: %v", windows)
	}
}
