package claim

import (
	"errors"
	"testing"
)

// pair runs two claimers on a simulated etcd. Nothing happens except the steps that a
// test takes.
type pair struct {
	*run
	t    *testing.T
	a, b *simProcess
}

func newPair(t *testing.T, ids ...string) *pair {
	x := &pair{run: &run{scenario: scenario{messages: ids}, explorer: &explorer{}}, t: t}
	x.begin()
	x.a, x.b = x.processes[0], x.processes[1]
	return x
}

// write makes a process send a write and get the answer, but see no changes yet. It reports
// whether there was something to write.
func (x *pair) write(p *simProcess) bool {
	if p.canWrite() {
		p.write()
	}
	if p.sending == nil {
		return false
	}
	_, answer := x.execute(len(x.net) - 1)
	p.answer(answer)
	return true
}

// see makes a process see all changes.
func (x *pair) see(p *simProcess) { p.watch(x.etcd.revision - p.view) }

// runUntilIdle runs both processes until nothing is left to be written or seen. It returns
// how many writes they sent.
func (x *pair) runUntilIdle() (writes int) {
	for more := true; more; {
		more = false
		for _, p := range x.processes {
			if x.write(p) {
				writes++
				more = true
			}
			for p.view < x.etcd.revision {
				p.watch(1)
				more = true
			}
		}
	}
	if x.violation != "" {
		x.t.Error(x.violation)
	}
	return writes
}

// expect checks the state of a delivery: "waits", "granted" or the text of its error.
func (x *pair) expect(c *Claim, want string) {
	x.t.Helper()
	got := "waits"
	select {
	case err := <-c.answer:
		if got = "granted"; err != nil {
			got = err.Error()
		}
	default:
	}
	if got != want {
		x.t.Errorf("the delivery %s, want: %s", got, want)
	}
}

// expectClaims checks how many claims list an id.
func (x *pair) expectClaims(id string, want int) {
	x.t.Helper()
	got := 0
	for _, k := range x.etcd.keys {
		for _, listed := range k.ids {
			if listed == id && x.etcd.leases[k.lease-1].session {
				got++
			}
		}
	}
	if got != want {
		x.t.Errorf("%d claims list %s, want %d", got, id, want)
	}
}

const done = "the id has been processed"

// finish finishes the work under a claim that must have been granted.
func (x *pair) finish(p *simProcess, c *Claim) {
	x.t.Helper()
	x.expect(c, "granted")
	p.c.finish(c)
}

// askAgain ends the work under a suspended claim and waits for the claim again.
func (x *pair) askAgain(p *simProcess, c *Claim) {
	x.t.Helper()
	x.expect(c, "granted")
	p.c.requeue(c)
}

// recorded returns the outcome of finished work.
func recorded(t *testing.T, c *Claim) (err error) {
	t.Helper()
	select {
	case err = <-c.answer:
	default:
		t.Error("the work is not recorded")
	}
	return err
}

// A second delivery of an id causes no write, and is skipped when the first is recorded. Both
// are answered when the view shows the write.
func TestSecondDeliveryOfTheProcess(t *testing.T) {
	x := newPair(t, "1")
	first := x.a.c.enqueue("1")
	x.write(x.a)
	x.expect(first, "waits")
	x.runUntilIdle()
	second := x.a.c.enqueue("1")
	if x.write(x.a) {
		t.Error("the second delivery causes a write")
	}
	x.finish(x.a, first)
	x.write(x.a)
	x.expect(second, "waits")
	x.see(x.a)
	x.expect(second, done)
	if err := recorded(t, first); err != nil {
		t.Error(err)
	}
	if n := x.runUntilIdle(); n != 0 {
		t.Errorf("%d writes follow the record", n)
	}
	x.expect(x.b.c.enqueue("1"), done)
	x.expectClaims("1", 0)
}

func TestReleasedToTheNextOfTheProcess(t *testing.T) {
	x := newPair(t, "1")
	first := x.a.c.enqueue("1")
	x.runUntilIdle()
	second := x.a.c.enqueue("1")
	x.a.c.Release(first)
	x.expect(second, "granted")
	x.a.c.Release(second)
	x.a.c.Release(first) // does nothing
	x.runUntilIdle()
	x.expectClaims("1", 0)
}

// A waiting process writes nothing more. The change that ends the claim before its own
// makes it the owner.
func TestNextProcess(t *testing.T) {
	for name, end := range map[string]func(x *pair, c *Claim){
		"released": func(x *pair, c *Claim) {
			x.a.c.Release(c)
			x.write(x.a)
		},
		"crashed, expired": func(x *pair, c *Claim) { x.etcd.end(x.a.lease) },
	} {
		t.Run(name, func(t *testing.T) {
			x := newPair(t, "1")
			first := x.a.c.enqueue("1")
			x.runUntilIdle()
			second := x.b.c.enqueue("1")
			x.runUntilIdle()
			x.expect(second, "waits")
			end(x, first)
			if x.write(x.b) {
				t.Error("the waiting process writes")
			}
			x.b.watch(1)
			x.expect(second, "granted")
			if second.Token <= first.Token {
				t.Errorf("the token went from %d to %d", first.Token, second.Token)
			}
		})
	}
}

// A session with entries writes when it has been quiet, and one without does not.
func TestProbe(t *testing.T) {
	x := newPair(t, "1")
	x.a.c.enqueue("1")
	x.runUntilIdle()
	for p, want := range map[*simProcess]bool{x.a: true, x.b: false} {
		p.c.probe()
		p.c.notify()
		if got := x.write(p); got != want {
			t.Errorf("a process with %d entries writes: %t", len(p.c.entries), got)
		}
	}
}

func TestWithdrawn(t *testing.T) {
	t.Run("before it is asked for", func(t *testing.T) {
		x := newPair(t, "1")
		x.a.c.withdraw(x.a.c.enqueue("1"))
		if x.write(x.a) {
			t.Error("it is asked for")
		}
	})
	t.Run("while etcd does not answer", func(t *testing.T) {
		c := newClaimer()
		for range 10 {
			c.withdraw(c.enqueue("1"))
		}
		if len(c.entries)+len(c.due) > 0 {
			t.Errorf("%d entries are kept, %d of them to be written", len(c.entries), len(c.due))
		}
	})
	t.Run("while another owns", func(t *testing.T) {
		x := newPair(t, "1")
		x.a.c.enqueue("1")
		x.runUntilIdle()
		w, other := x.b.c.enqueue("1"), x.b.c.enqueue("1")
		x.runUntilIdle()
		x.expectClaims("1", 2)
		x.b.c.withdraw(w)
		x.runUntilIdle()
		x.expectClaims("1", 2)
		x.b.c.withdraw(other)
		x.runUntilIdle()
		x.expectClaims("1", 1)
	})
	t.Run("and asked for again", func(t *testing.T) {
		x := newPair(t, "1")
		w := x.a.c.enqueue("1")
		x.runUntilIdle()
		x.a.c.Release(w)
		x.a.write() // takes the id off its claim
		again := x.a.c.enqueue("1")
		_, answer := x.execute(0)
		x.a.answer(answer)
		x.runUntilIdle()
		x.expect(again, "granted")
		if again.Token <= w.Token {
			t.Errorf("the token went from %d to %d", w.Token, again.Token)
		}
	})
	t.Run("too late", func(t *testing.T) {
		x := newPair(t, "1")
		w := x.a.c.enqueue("1")
		x.runUntilIdle()
		if x.a.c.withdraw(w) {
			t.Error("a delivery is withdrawn after its answer")
		}
	})
}

// A check is answered by the next write of its session, and not by one of a later session.
func TestCheckIsAWrite(t *testing.T) {
	x := newPair(t, "1")
	claimed := x.a.c.enqueue("1")
	x.runUntilIdle()
	for _, undone := range []bool{false, true} {
		check := x.a.c.requestWrite()
		if undone {
			x.a.write()
			x.a.c.undo(x.a.sending)
			x.a.sending, x.net = nil, nil
		}
		if n := x.runUntilIdle(); n != 1 {
			t.Errorf("%d writes", n)
		}
		select {
		case <-check:
		default:
			t.Error("the write does not answer the check")
		}
	}
	check := x.a.c.requestWrite()
	x.lose(x.a)
	x.runUntilIdle()
	select {
	case <-check:
		t.Error("a later session answers the check")
	default:
	}
	if err := x.a.c.Check(t.Context(), claimed); !errors.Is(err, ErrSuspended) {
		t.Errorf("the check of a lost claim: %v", err)
	}
}
