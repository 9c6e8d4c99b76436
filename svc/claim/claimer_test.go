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

// write makes a process send its writes and get their answers, but see no changes yet.
// It returns the number of writes.
func (x *pair) write(p *simProcess) (writes int) {
	for p.canWrite() {
		if p.write(); p.c.pending() == nil {
			break
		}
		_, answer := x.execute(len(x.net) - 1)
		p.answer(answer)
		writes++
	}
	return writes
}

// runUntilIdle runs both processes until nothing is left to be written or seen.
func (x *pair) runUntilIdle() {
	for more := true; more; {
		more = x.write(x.a)+x.write(x.b) > 0
		for _, p := range x.processes {
			for p.view < x.etcd.revision {
				p.watch(1)
				more = true
			}
		}
	}
	if x.violation != "" {
		x.t.Error(x.violation)
	}
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

func TestGrantedWhenTheClaimIsSeen(t *testing.T) {
	x := newPair(t, "1")
	w := x.a.c.enqueue("1")
	x.expect(w, "waits")
	if n := x.write(x.a); n != 1 {
		t.Errorf("%d writes", n)
	}
	x.expect(w, "waits")
	x.runUntilIdle()
	x.expect(w, "granted")
	if w.Token != x.etcd.truth[x.etcd.revision]["1"].token || w.Held.Err() != nil {
		t.Errorf("granted %+v", w)
	}
}

func TestSecondDeliveryOfTheProcess(t *testing.T) {
	x := newPair(t, "1")
	first := x.a.c.enqueue("1")
	x.runUntilIdle()
	second := x.a.c.enqueue("1")
	if n := x.write(x.a); n != 0 {
		t.Errorf("the second delivery causes %d writes", n)
	}
	x.finish(x.a, first)
	x.expect(second, "waits")
	if n := x.write(x.a); n != 1 {
		t.Errorf("the record takes %d writes", n)
	}
	x.expect(second, done) // on the answer to the write, before its changes are seen
	if err := recorded(t, first); err != nil {
		t.Error(err)
	}
	x.runUntilIdle()
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
		"released":         func(x *pair, c *Claim) { x.a.c.Release(c) },
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
			x.write(x.a)
			if n := x.write(x.b); n != 0 {
				t.Errorf("the waiting process sends %d writes", n)
			}
			x.b.watch(1)
			x.expect(second, "granted")
			if second.Token <= first.Token {
				t.Errorf("the token went from %d to %d", first.Token, second.Token)
			}
		})
	}
}

// writeIfWaiting forces one write of a process that waits for another, and none of the owner.
func TestWriteIfWaiting(t *testing.T) {
	x := newPair(t, "1")
	first := x.a.c.enqueue("1")
	x.runUntilIdle()
	x.b.c.enqueue("1")
	x.a.c.enqueue("1") // waits for a delivery of its own process
	x.runUntilIdle()
	for want, p := range []*simProcess{x.a, x.b} {
		p.c.writeIfWaiting()
		p.c.writeIfWaiting()
		if n := x.write(p); n != want {
			t.Errorf("%d writes are sent, want %d", n, want)
		}
	}
	// The session of a ends. Its work has finished, and waits for b.
	x.expect(first, "granted")
	x.lose(x.a)
	x.runUntilIdle()
	x.a.c.finish(first)
	x.a.c.writeIfWaiting()
	if n := x.write(x.a); n != 1 {
		t.Errorf("a process whose finished work waits for another sends %d writes, want 1", n)
	}
}

func TestOtherProcessCompletes(t *testing.T) {
	x := newPair(t, "1")
	first, second := x.a.c.enqueue("1"), x.b.c.enqueue("1")
	x.runUntilIdle()
	x.finish(x.a, first)
	x.write(x.a)
	x.b.watch(1)
	x.expect(second, done)
	if err := recorded(t, first); err != nil {
		t.Error(err)
	}
	x.runUntilIdle()
	x.expectClaims("1", 0)
	if n := len(x.a.c.entries) + len(x.b.c.entries); n > 0 {
		t.Errorf("%d ids are kept", n)
	}
}

func TestWithdrawn(t *testing.T) {
	t.Run("before it is asked for", func(t *testing.T) {
		x := newPair(t, "1")
		x.a.c.withdraw(x.a.c.enqueue("1"))
		if n := x.write(x.a); n != 0 {
			t.Errorf("%d writes", n)
		}
	})
	t.Run("while etcd does not answer", func(t *testing.T) {
		c := newClaimer(newRoleState())
		for range 10 {
			c.withdraw(c.enqueue("1"))
		}
		if len(c.entries)+len(c.writer.wanted) > 0 {
			t.Errorf("%d entries are kept, %d of them to be written", len(c.entries), len(c.writer.wanted))
		}
	})
	t.Run("on the way", func(t *testing.T) {
		x := newPair(t, "1")
		w := x.a.c.enqueue("1")
		x.a.write()
		x.a.c.withdraw(w)
		_, answer := x.execute(0)
		x.a.answer(answer)
		x.runUntilIdle()
		x.expectClaims("1", 0)
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

// A check is answered by a write of its session, and not by a write of a later session.
func TestCheckIsAWrite(t *testing.T) {
	x := newPair(t, "1")
	claimed := x.a.c.enqueue("1")
	x.runUntilIdle()
	check := x.a.c.requestCheck()
	if n := x.write(x.a); n != 1 {
		t.Errorf("%d writes", n)
	}
	select {
	case <-check:
	default:
		t.Error("the write does not answer the check")
	}
	check = x.a.c.requestCheck()
	x.etcd.end(x.a.lease)
	x.a.end()
	x.a.endSession()
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
