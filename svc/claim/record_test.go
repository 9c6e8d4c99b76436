package claim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// driver runs a claimer whose writes are carried out and shown at once.
type driver struct {
	*simProcess
	t                        *testing.T
	writes, maxOps, maxBytes int
	all                      []*write
}

func newDriver(t *testing.T) *driver {
	return &driver{simProcess: newPair(t).a, t: t}
}

func (d *driver) pump() {
	for d.canWrite() {
		if d.write(); d.sending == nil {
			break
		}
		w := *d.sending
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

// Lone ids are added to the session's last record until that lists 16, also after the view was
// read anew. A new session begins a record of its own.
func TestSmallRecords(t *testing.T) {
	d := newDriver(t)
	for i := range 40 {
		if d.done(fmt.Sprint(i)); i%10 == 9 {
			d.load()
		}
	}
	d.c.suspendSession()
	d.endSession()
	d.done("40")
	var sizes []int
	listed := 0
	for _, ids := range d.records() {
		sizes = append(sizes, len(ids))
		listed += len(ids)
	}
	slices.Sort(sizes)
	if !slices.Equal(sizes, []int{1, 8, 16, 16}) {
		t.Errorf("the records list %v ids", sizes)
	}
	for i := range 41 {
		if !d.c.view.Done(fmt.Sprint(i)) {
			t.Fatalf("%d is not done", i)
		}
	}
}

// An id that was forgotten is processed again, and recorded in a new record, where it counts, also
// for a view that is read anew. The next ids are added to that.
func TestForgottenIsRecordedAgain(t *testing.T) {
	d := newDriver(t)
	d.done("1")
	d.done("2")
	d.x.etcd.forget("1")
	d.watch(1)
	if d.c.view.Done("1") || !d.c.view.Done("2") {
		t.Fatalf("1 is done: %t, 2 is done: %t", d.c.view.Done("1"), d.c.view.Done("2"))
	}
	d.done("1")
	d.done("3")
	d.load()
	for _, id := range []string{"1", "2", "3"} {
		if !d.c.view.Done(id) {
			t.Errorf("%s is not done", id)
		}
	}
	records := slices.SortedFunc(maps.Values(d.records()), slices.Compare[[]string])
	if want := [][]string{{"1", "2"}, {"1", "3"}}; !slices.EqualFunc(records, want, slices.Equal[[]string]) {
		t.Errorf("the records list %v, want %v", records, want)
	}
}

// Work that was recorded and forgotten before the process saw either is not recorded again,
// whether it then sees both changes at once or reads all keys. The next work on it is.
func TestForgottenUnseen(t *testing.T) {
	for name, see := range map[string]func(p *simProcess){
		"followed": func(p *simProcess) { p.watch(p.x.etcd.revision - p.view) },
		"read":     func(p *simProcess) { p.load() },
		"lost":     func(p *simProcess) { p.endSession() },
	} {
		x := newPair(t, "1", "2")
		first := x.a.c.enqueue("1")
		x.runUntilIdle()
		x.finish(x.a, first)
		x.write(x.a)
		x.etcd.forget("1")
		see(x.a)
		if err := recorded(t, first); err != nil {
			t.Errorf("%s: complete: %v", name, err)
		}
		if writes := x.runUntilIdle(); writes > 0 || x.a.c.view.Done("1") {
			t.Errorf("%s: %d writes follow; it is done: %t", name, writes, x.a.c.view.Done("1"))
		}
		again := x.a.c.enqueue("1")
		x.runUntilIdle()
		x.finish(x.a, again)
		x.a.write()
		x.a.load() // the record of the first time is still its session's last
		if len(again.answer) > 0 {
			t.Errorf("%s: complete returns before the second record", name)
		}
		x.execute(0)
		x.see(x.a)
		if err := recorded(t, again); err != nil {
			t.Errorf("%s: complete: %v", name, err)
		}
	}
}

// Ids are not added to the record of another window. A write that is refused because its
// window has ended is composed anew, with its own ids alone, in the next window.
func TestWindowEnds(t *testing.T) {
	d := newDriver(t)
	d.done("0")
	w := d.c.enqueue("last")
	d.pump()
	d.finish(w)
	d.simProcess.write()
	if sent := d.sending; !slices.Equal(sent.Done, []string{"0", "last"}) || sent.Record == sent.N || sent.NewWindow {
		t.Fatalf("the write is %+v", sent)
	}
	d.x.etcd.end(d.sending.Window.Lease)
	_, answer := d.x.execute(0)
	d.answer(answer)
	d.simProcess.write()
	if sent := d.sending; !slices.Equal(sent.Done, []string{"last"}) || sent.Record != sent.N || !sent.NewWindow {
		t.Errorf("the write is now %+v", sent)
	}
	_, answer = d.x.execute(0)
	d.answer(answer)
	d.watch(d.x.etcd.revision - d.view)
	if !d.c.view.Done("last") || d.c.view.Done("0") {
		t.Errorf("last is done: %t; 0, of the ended window, is done: %t", d.c.view.Done("last"), d.c.view.Done("0"))
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
		d := newDriver(t)
		w := d.c.enqueue("1")
		d.pump()
		d.c.setWindow(tt.window)
		if d.c.needsWindow() {
			t.Errorf("%s: a window is needed although there is nothing to record", name)
		}
		d.finish(w)
		if got := d.c.needsWindow(); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
		if sent := d.c.compose(); (sent == nil) != tt.want { // an id finished after a look at the window
			t.Errorf("%s: the next write is %+v", name, sent)
		}
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
