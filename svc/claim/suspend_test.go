package claim

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestSuspendedAndGoesOn(t *testing.T) {
	x := newPair(t, "1", "2", "3")
	working, worked := x.a.c.enqueue("1"), x.a.c.enqueue("2")
	x.runUntilIdle()
	token := working.Token
	x.a.c.suspendSession()
	if cause := context.Cause(working.Held); !errors.Is(cause, ErrSuspended) {
		t.Errorf("Held ends with %v", cause)
	}
	x.askAgain(x.a, working)
	late := x.a.c.enqueue("3")
	x.finish(x.a, worked) // this work had finished before it noticed the suspension
	x.runUntilIdle()
	x.expect(working, "waits")
	x.expectClaims("3", 0)
	if err := recorded(t, worked); err != nil {
		t.Error(err)
	}
	if !x.a.c.renewed(farFuture) {
		t.Error("the session does not resume")
	}
	x.runUntilIdle()
	x.expect(working, "granted")
	x.expect(late, "granted")
	if working.Token != token || working.Held.Err() != nil {
		t.Errorf("granted %+v, want the token %d", working, token)
	}
}

// A process that sees the end of its own session suspends its claims at once: from that
// revision on another process owns the ids.
func TestSessionEndsUnderAProcess(t *testing.T) {
	x := newPair(t, "1")
	working, waiting := x.a.c.enqueue("1"), x.b.c.enqueue("1")
	x.runUntilIdle()
	x.etcd.end(x.a.lease)
	x.a.watch(1)
	if cause := context.Cause(working.Held); !errors.Is(cause, ErrSuspended) {
		t.Errorf("Held has ended with %v", cause)
	}
	x.b.watch(1)
	x.expect(waiting, "granted")
	x.askAgain(x.a, working)
	x.runUntilIdle()
	if !x.a.over {
		t.Fatal("no write shows that the session is over")
	}
	x.a.endSession()
	x.runUntilIdle()
	x.expect(working, "waits")
	x.expectClaims("1", 2)
}

// lose ends the session of a process, as an outage of more than CLAIM_TTL does.
func (x *pair) lose(p *simProcess) {
	p.c.suspendSession()
	x.etcd.end(p.lease)
	p.renew()
	p.endSession()
}

func TestSessionLost(t *testing.T) {
	t.Run("no other delivery came", func(t *testing.T) {
		x := newPair(t, "1", "2")
		working, worked := x.a.c.enqueue("1"), x.a.c.enqueue("2")
		x.runUntilIdle()
		token := working.Token
		x.lose(x.a)
		x.askAgain(x.a, working)
		x.finish(x.a, worked)
		x.runUntilIdle()
		x.expect(working, "granted")
		if working.Token <= token {
			t.Errorf("the token went from %d to %d", token, working.Token)
		}
		if err := recorded(t, worked); err != nil {
			t.Error(err)
		}
		x.expect(x.b.c.enqueue("2"), done)
	})
	t.Run("another works", func(t *testing.T) {
		x := newPair(t, "1", "2", "3")
		working, worked, failed := x.a.c.enqueue("1"), x.a.c.enqueue("2"), x.a.c.enqueue("3")
		x.runUntilIdle()
		others := []*Claim{x.b.c.enqueue("1"), x.b.c.enqueue("2"), x.b.c.enqueue("3")}
		x.runUntilIdle()
		x.lose(x.a)
		x.askAgain(x.a, working)
		x.finish(x.a, worked)
		x.finish(x.a, failed)
		x.runUntilIdle()
		for _, w := range others {
			x.expect(w, "granted")
		}
		x.expect(working, "waits")
		if len(worked.answer) > 0 {
			t.Error("the work is recorded while another process owns the id")
		}
		x.b.c.finish(others[0])
		x.b.c.finish(others[1])
		x.b.c.Release(others[2])
		x.runUntilIdle()
		x.expect(working, done)
		if err := recorded(t, worked); !errors.Is(err, ErrDone) {
			t.Errorf("complete after another process has completed: %v", err)
		}
		if err := recorded(t, failed); err != nil {
			t.Errorf("complete of an id that another process has released: %v", err)
		}
		x.expect(x.b.c.enqueue("3"), done)
		for _, id := range []string{"1", "2", "3"} {
			x.expectClaims(id, 0)
		}
	})
	t.Run("a delivery waits behind finished work", func(t *testing.T) {
		x := newPair(t, "1")
		worked := x.a.c.enqueue("1")
		x.runUntilIdle()
		waits := x.a.c.enqueue("1")
		x.lose(x.a)
		x.runUntilIdle() // the new session owns the id, and the work still runs
		x.expect(waits, "waits")
		x.finish(x.a, worked)
		x.runUntilIdle()
		x.expect(waits, done)
		if err := recorded(t, worked); err != nil {
			t.Error(err)
		}
	})
	t.Run("its record exists", func(t *testing.T) {
		x := newPair(t, "1")
		worked := x.a.c.enqueue("1")
		x.runUntilIdle()
		x.finish(x.a, worked)
		x.a.write()
		x.execute(0) // its answer is lost
		x.lose(x.a)
		if err := recorded(t, worked); err != nil {
			t.Error(err)
		}
		if n := x.write(x.a); n != 0 {
			t.Errorf("%d writes follow", n)
		}
	})
	t.Run("its record does not exist", func(t *testing.T) {
		x := newPair(t, "1")
		worked := x.a.c.enqueue("1")
		x.runUntilIdle()
		x.finish(x.a, worked)
		x.a.write()
		x.lose(x.a)
		if _, answer := x.execute(0); answer.succeeded {
			t.Error("a late copy is carried out")
		}
		if len(worked.answer) > 0 {
			t.Error("complete has returned")
		}
		x.runUntilIdle()
		if err := recorded(t, worked); err != nil {
			t.Error(err)
		}
	})
}

// overtaken returns a claim of process a whose session ended unseen by a. Process b has
// recorded the id after a had finished its work, and a has seen that record. before runs
// before b records.
func (x *pair) overtaken(before func()) *Claim {
	x.t.Helper()
	first := x.a.c.enqueue("1")
	x.runUntilIdle()
	second := x.b.c.enqueue("1")
	x.runUntilIdle()
	x.etcd.end(x.a.lease)
	x.finish(x.a, first)
	before()
	x.b.watch(x.etcd.revision - x.b.view)
	x.finish(x.b, second)
	x.write(x.b)
	x.a.watch(x.etcd.revision - x.a.view)
	return first
}

// Work that another process has recorded first is not recorded a second time.
func TestRecordedByAnotherFirst(t *testing.T) {
	x := newPair(t, "1")
	first := x.overtaken(func() {})
	if err := recorded(t, first); !errors.Is(err, ErrDone) {
		t.Errorf("complete after another process has completed: %v", err)
	}
	if x.a.write(); x.a.c.pending() != nil && len(x.a.c.pending().Done) > 0 {
		t.Errorf("write %+v", x.a.c.pending())
	}
}

// After close no change of the state answers a call that close has answered.
func TestChangeAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which ends a test that blocks
		x := newPair(t, "1")
		first := x.overtaken(x.a.c.close)
		if err := recorded(t, first); !errors.Is(err, ErrClosed) || len(first.answer) > 0 {
			t.Errorf("complete: %v, %d more answers", err, len(first.answer))
		}
	})
}

// A view that was read anew and does not show a committed write suspends the session
// until its next write is answered.
func TestRebuiltWithoutAWrite(t *testing.T) {
	x := newPair(t, "1", "2")
	granted := x.a.c.enqueue("1")
	x.runUntilIdle()
	waits := x.b.c.enqueue("1") // to be granted if only b's claim were left
	x.runUntilIdle()
	session, committed := x.a.c.lastWrite()
	x.a.c.rebuild(x.a.c.state, session, committed)
	if granted.Held.Err() != nil {
		t.Fatal("the session is suspended, and every write is seen")
	}
	x.a.c.rebuild(newRoleState(), session, committed)
	if granted.Held.Err() == nil {
		t.Error("the session goes on")
	}
	x.askAgain(x.a, granted)
	if !x.a.c.renewed(farFuture) {
		t.Error("a renewal does not resume the session")
	}
	x.expect(granted, "waits") // the state has no claim of it
	x.expect(waits, "waits")
	x.etcd.end(x.a.lease)
	if n := x.write(x.a); n != 1 || !x.a.over {
		t.Errorf("%d writes found out that the session is over: %t", n, x.a.over)
	}
}

// A timer that fires as the session is renewed does not suspend it.
func TestRenewedAsItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClaimer(newRoleState())
		c.beginSession("s", time.Now().Add(ttlOfTest))
		<-time.After(ttlOfTest)
		c.renewed(time.Now().Add(ttlOfTest))
		if c.suspendExpired() || !c.valid() {
			t.Error("the session is suspended although it was renewed")
		}
		<-time.After(ttlOfTest)
		if !c.suspendExpired() || c.valid() {
			t.Error("the session is not suspended although it has expired")
		}
		if c.renewed(time.Now()) || c.held.Err() == nil {
			t.Error("it is resumed by an answer that came too late")
		}
	})
}

const ttlOfTest = 10 * time.Second
