package claim

import (
	"cmp"
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
	x.a.c.suspend(ErrSuspended)
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

// A process that sees the end of its own session suspends its claims at once, and ends the
// session: from that revision on another process owns the ids.
func TestSessionEndsUnderAProcess(t *testing.T) {
	x := newPair(t, "1")
	working, waiting := x.a.c.enqueue("1"), x.b.c.enqueue("1")
	x.runUntilIdle()
	x.etcd.end(x.a.lease)
	x.a.watch(1)
	if cause := context.Cause(working.Held); !errors.Is(cause, ErrSuspended) || !x.a.over {
		t.Errorf("Held has ended with %v, the session: %t", cause, x.a.over)
	}
	if x.a.c.renewed(farFuture) {
		t.Error("an answer to a renewal resumes it")
	}
	x.b.watch(1)
	x.expect(waiting, "granted")
	x.askAgain(x.a, working)
	x.a.endSession()
	x.runUntilIdle()
	x.expect(working, "waits")
	x.expectClaims("1", 2)
}

// A view that was read anew and is older than what was seen before shows that etcd was
// restored from a backup: the session is over.
func TestReadFromABackup(t *testing.T) {
	x := newPair(t, "1")
	granted := x.a.c.enqueue("1")
	x.runUntilIdle()
	x.a.load()
	if granted.Held.Err() != nil || x.a.over {
		t.Fatal("a view that is up to date ends the session")
	}
	x.a.c.rebuild(newRoleState(x.a.c.view.session), x.a.view-1, x.a.c.seen())
	if granted.Held.Err() == nil || !x.a.over {
		t.Error("the session goes on")
	}
}

// lose ends the session of a process, as an outage of more than CLAIM_TTL does.
func (x *pair) lose(p *simProcess) {
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
	for _, exists := range []bool{true, false} {
		t.Run(map[bool]string{true: "its record exists", false: "its record does not exist"}[exists], func(t *testing.T) {
			x := newPair(t, "1")
			worked := x.a.c.enqueue("1")
			x.runUntilIdle()
			x.finish(x.a, worked)
			x.a.write()
			if exists {
				x.execute(0) // its answer is lost
			}
			x.lose(x.a)
			if answered := len(worked.answer) > 0; answered != exists {
				t.Errorf("complete has returned: %t", answered)
			}
			if !exists {
				if _, answer := x.execute(0); answer.version != 0 {
					t.Error("a late copy is carried out")
				}
			}
			writes := x.runUntilIdle()
			if err := recorded(t, worked); err != nil {
				t.Error(err)
			}
			if exists && writes > 0 {
				t.Errorf("%d writes follow", writes)
			}
		})
	}
}

// Work that another process has recorded first, unseen, is not recorded a second time. After
// close no change of the view answers a call that close has answered.
func TestRecordedByAnotherFirst(t *testing.T) {
	for name, want := range map[string]error{"open": ErrDone, "closed": ErrClosed} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which ends a test that blocks
				x := newPair(t, "1")
				first := x.a.c.enqueue("1")
				x.runUntilIdle()
				second := x.b.c.enqueue("1")
				x.runUntilIdle()
				x.etcd.end(x.a.lease) // unseen by a
				x.finish(x.a, first)
				if want == ErrClosed {
					x.a.c.close()
				}
				x.see(x.b)
				x.finish(x.b, second)
				x.write(x.b)
				x.see(x.a)
				if err := recorded(t, first); !errors.Is(err, want) || len(first.answer) > 0 {
					t.Errorf("complete: %v, %d more answers", err, len(first.answer))
				}
			})
		})
	}
}

// A timer that fires as the session is renewed does not suspend it.
func TestRenewedAsItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Second
		c := newClaimer()
		c.beginSession("s", 1, time.Now().Add(ttl), func(error) {})
		<-time.After(ttl)
		c.renewed(time.Now().Add(ttl))
		if c.suspendExpired() || !c.valid() {
			t.Error("the session is suspended although it was renewed")
		}
		<-time.After(ttl)
		if !c.suspendExpired() || c.valid() {
			t.Error("the session is not suspended although it has expired")
		}
		if c.renewed(time.Now()) || c.held.Err() == nil {
			t.Error("it is resumed by an answer that came too late")
		}
	})
}

// A machine that slept for longer than CLAIM_TTL: the monotonic clock, and with it the timer, stood
// still. The session is suspended all the same, by the next delivery and by the next look at it.
func TestSlept(t *testing.T) {
	defer func(clock func() time.Time) { wallClock = clock }(wallClock)
	x := newPair(t, "1", "2")
	x.a.c.renewed(time.Now().Add(10 * time.Second))
	working := x.a.c.enqueue("1")
	x.runUntilIdle()
	x.expect(working, "granted")
	awake := wallClock
	wallClock = func() time.Time { return awake().Add(9 * time.Second) }
	if !x.a.c.valid() || x.a.c.suspendExpired() {
		t.Error("the session ends too early")
	}
	wallClock = func() time.Time { return awake().Add(time.Hour) }
	late := x.a.c.enqueue("2")
	x.runUntilIdle()
	x.expect(late, "waits")
	if x.a.c.renewed(time.Now().Add(10 * time.Second)) {
		t.Error("an answer to a renewal that was sent before resumes the session")
	}
	if !x.a.c.suspendExpired() || working.Held.Err() == nil {
		t.Error("the session is not suspended")
	}
	if !x.a.c.renewed(time.Now().Add(2 * time.Hour)) {
		t.Error("the session does not resume after a renewal")
	}
	x.runUntilIdle()
	x.expect(late, "granted")
}

func TestIsOver(t *testing.T) {
	tests := map[string]struct {
		version, revision, sent, committed int64
		want                               bool
	}{
		"the last write is shown":           {3, 10, 3, 10, false},
		"it is shown before its answer":     {3, 10, 3, 0, false},
		"it is unanswered":                  {2, 10, 3, 0, false},
		"the view is older":                 {2, 9, 3, 10, false},
		"a view read anew is older":         {0, 9, 3, 10, false},
		"the view should show it":           {2, 10, 3, 10, true},
		"the key is gone":                   {0, 11, 3, 10, true},
		"the key is gone, no answer":        {0, 11, 3, 0, true},
		"the new session is not shown yet":  {0, 9, 1, 10, false},
		"the new session ended unseen":      {0, 10, 1, 10, true},
		"somebody else has written the key": {4, 11, 3, 10, true},
	}
	for name, tt := range tests {
		if got := isOver(tt.version, tt.revision, tt.sent, tt.committed); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// The view lags when it does not show an answered write within 2 s of its sending, or 0.5 s of
// its answer, whichever is later. A new watch has a second.
func TestLags(t *testing.T) {
	tests := map[string]struct {
		answered, opened time.Duration // after the sending; answered 0: not
		want             time.Duration // after the sending; 0: never
	}{
		"answered at once":         {time.Millisecond, -time.Hour, 2 * time.Second},
		"answered late":            {3 * time.Second, -time.Hour, 3500 * time.Millisecond},
		"unanswered":               {0, -time.Hour, 0},
		"the watch is opened then": {time.Millisecond, 4 * time.Second, 5 * time.Second},
	}
	for name, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			c, sent := newClaimer(), time.Now()
			w := &write{N: 2, sent: sent}
			c.pending = w
			if tt.answered > 0 {
				w.answered = sent.Add(tt.answered)
			}
			lagsAfter := func(d time.Duration) bool {
				<-time.After(time.Until(sent.Add(d)))
				return c.lags(sent.Add(tt.opened))
			}
			if before := lagsAfter(cmp.Or(tt.want, time.Hour)); before {
				t.Errorf("%s: it lags too early", name)
			}
			if after := lagsAfter(cmp.Or(tt.want, time.Hour) + time.Millisecond); after != (tt.want > 0) {
				t.Errorf("%s: it lags: %t", name, after)
			}
		})
	}
}
