package claim

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pair runs two claimers on a simulated etcd. Nothing happens except the steps that a
// test takes. TestExplore shows what follows from all orders of steps; the tests of this file
// show what it does not look at.
type pair struct {
	*run
	t    *testing.T
	a, b *simProcess
}

func newPair(t *testing.T) *pair {
	x := newRun(scenario{})
	return &pair{x, t, x.processes[0], x.processes[1]}
}

// write makes a process send a write and get the answer, but see no changes yet. It returns
// the write, or nil if there is nothing to write.
func (x *pair) write(p *simProcess) *write {
	if p.canWrite() {
		p.write()
	}
	w := p.sending
	if w != nil {
		answer, _ := x.execute(x.net[len(x.net)-1])
		p.answer(answer)
	}
	return w
}

// see makes a process see all changes.
func (x *pair) see(p *simProcess) { p.watch(x.etcd.revision - p.view) }

// runUntilIdle runs both processes until nothing is left to be written or seen. It returns
// their writes.
func (x *pair) runUntilIdle() (writes []*write) {
	for more := true; more; {
		more = false
		for _, p := range x.processes {
			if w := x.write(p); w != nil {
				writes, more = append(writes, w), true
			}
			for p.view < x.etcd.revision {
				p.watch(1)
				more = true
			}
		}
	}
	if x.violation != "" {
		x.t.Fatal(x.violation)
	}
	return writes
}

// grant returns the claim of a new delivery that must be granted.
func (x *pair) grant(p *simProcess, id string) *Claim {
	x.t.Helper()
	c := p.c.enqueue(id)
	x.runUntilIdle()
	x.expect(c, "granted")
	return c
}

// expect checks the state of a delivery: "waits", "granted" (or recorded) or the text of its error.
func (x *pair) expect(c *Claim, want string) {
	x.t.Helper()
	got := "waits"
	if len(c.answer) > 0 {
		got = "granted"
		if err := <-c.answer; err != nil {
			got = err.Error()
		}
	}
	if got != want {
		x.t.Errorf("the delivery of %s %s, want: %s", c.ID, got, want)
	}
}

// An id that cannot be stored unchanged, or is too long to be stored, is refused at once.
func TestInvalidID(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for id, want := range map[string]error{"\xff": ErrInvalidID, strings.Repeat("x", 10_001): ErrInvalidID, strings.Repeat("\x01", 10_000): context.Canceled} {
		if _, err := newClaimer().Claim(ctx, id); !errors.Is(err, want) {
			t.Errorf("claim of an id of %d bytes: %v", len(id), err)
		}
	}
}

// A process knows how many processes of the role live, and which types the others handle. A session
// of an earlier version handles none.
func TestSessions(t *testing.T) {
	x := newPair(t)
	x.etcd.commit(x.etcd.put("session/old", "vm 17285", x.etcd.grant(true)))
	x.runUntilIdle()
	if n := x.a.c.Sessions(); n != 3 || !x.a.c.HandledElsewhere("B") || x.a.c.HandledElsewhere("A") || x.a.c.HandledElsewhere("vm 17285") {
		t.Errorf("%d of 3 sessions are seen: %v", n, x.a.c.view.sessions)
	}
	x.etcd.end(x.b.lease)
	x.see(x.a)
	if n := x.a.c.Sessions(); n != 2 || x.a.c.HandledElsewhere("B") {
		t.Errorf("%d of 2 sessions are seen: %v", n, x.a.c.view.sessions)
	}
	if x.a.c.suspend(ErrSuspended); x.a.c.Sessions() != 0 {
		t.Error("sessions are counted by one that is suspended")
	}
}

// A session with entries writes when it has been quiet, and one without does not.
func TestProbe(t *testing.T) {
	x := newPair(t)
	x.grant(x.a, "1")
	for p, want := range map[*simProcess]bool{x.a: true, x.b: false} {
		p.c.probe()
		p.c.notify()
		if got := x.write(p) != nil; got != want {
			t.Errorf("a process with %d entries writes: %t", len(p.c.entries), got)
		}
	}
}

// A delivery that ends as it is answered keeps the answer.
func TestWithdrawn(t *testing.T) {
	x := newPair(t)
	if x.a.c.withdraw(x.grant(x.a, "1")) {
		t.Error("a delivery is withdrawn after its answer")
	}
}

// A check is answered by the next write of its session, also after one that is undone, and not by one of a
// later session.
func TestCheckIsAWrite(t *testing.T) {
	x := newPair(t)
	claimed := x.grant(x.a, "1")
	first := x.a.c.requestWrite()
	x.a.write()
	x.a.c.undo(x.a.sending)
	x.a.sending, x.net = nil, nil
	if n := len(x.runUntilIdle()); n != 1 || !isClosed(first) {
		t.Errorf("after %d writes the check is answered: %t", n, isClosed(first))
	}
	second := x.a.c.requestWrite()
	x.a.nextSession()
	if x.runUntilIdle(); isClosed(second) {
		t.Error("a later session answers the check")
	}
	if err := x.a.c.Check(t.Context(), claimed); !errors.Is(err, ErrSuspended) {
		t.Errorf("the check of a lost claim: %v", err)
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A suspended session records, and grants nothing. (That it claims nothing, and goes on with the same tokens,
// the exploration shows.)
func TestSuspended(t *testing.T) {
	x := newPair(t)
	worked := x.grant(x.a, "1")
	x.a.c.suspend(ErrSuspended)
	late := x.a.c.enqueue("2")
	x.a.c.finish(worked)
	x.runUntilIdle()
	x.expect(worked, "granted") // recorded
	x.expect(late, "waits")
}

// A process that sees the end of its own session suspends its claims at once, and ends the
// session: from that revision on another process owns the ids.
func TestSessionEndsUnderAProcess(t *testing.T) {
	x := newPair(t)
	working, waits := x.grant(x.a, "1"), x.b.c.enqueue("1")
	x.runUntilIdle()
	x.expect(waits, "waits")
	x.etcd.end(x.a.lease)
	x.a.watch(1)
	if cause := context.Cause(working.Held); !errors.Is(cause, ErrSuspended) || !x.a.over {
		t.Errorf("Held has ended with %v, the session: %t", cause, x.a.over)
	}
	if x.a.c.renewed(farFuture) {
		t.Error("an answer to a renewal resumes it")
	}
	x.b.watch(1)
	x.expect(waits, "granted")
}

// A view that was read anew and is older than what was seen before shows that etcd was
// restored from a backup: the session is over.
func TestReadFromABackup(t *testing.T) {
	x := newPair(t)
	granted := x.grant(x.a, "1")
	x.a.load()
	if granted.Held.Err() != nil || x.a.over {
		t.Fatal("a view that is up to date ends the session")
	}
	x.a.c.rebuild(newRoleState(x.a.c.view.session), x.a.view-1, x.a.c.seen())
	if granted.Held.Err() == nil || !x.a.over {
		t.Error("the session goes on")
	}
}

// After close no change of the view answers a call that close has answered.
func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which ends a test that blocks
		x := newPair(t)
		first, second := x.grant(x.a, "1"), x.b.c.enqueue("1")
		x.runUntilIdle()
		x.etcd.end(x.a.lease) // unseen by a
		x.a.c.finish(first)
		x.a.c.close()
		x.see(x.b)
		x.expect(second, "granted")
		x.b.c.finish(second)
		x.write(x.b)
		x.see(x.a)
		x.expect(first, ErrClosed.Error())
		x.expect(first, "waits")
	})
}

// The session is suspended when its time is over, and not by a timer that fires as it is renewed. While a
// machine sleeps the monotonic clock, and with it the timer, stands still: the session is suspended all the
// same, by the next delivery and by the next look at it.
func TestTimeIsOver(t *testing.T) {
	defer func(clock func() time.Time) { wallClock = clock }(wallClock)
	for _, sleeps := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const ttl = 10 * time.Second
			asleep := time.Duration(0)
			wallClock = func() time.Time { return time.Now().Round(0).Add(asleep) }
			pass := func(d time.Duration) {
				if sleeps {
					asleep += d
				} else {
					<-time.After(d)
				}
			}
			x := newPair(t)
			renewed := func(left time.Duration) bool { return x.a.c.renewed(time.Now().Add(asleep + left)) }
			renewed(ttl)
			working := x.grant(x.a, "1")
			if pass(ttl - 1); x.a.c.suspendExpired() || !x.a.c.valid() {
				t.Error("the session is suspended too early")
			}
			pass(1)
			late := x.a.c.enqueue("2")
			x.runUntilIdle()
			x.expect(late, "waits")
			if renewed(ttl) || x.a.c.suspendExpired() {
				t.Error("the session is suspended although it was renewed")
			}
			x.runUntilIdle()
			x.expect(late, "granted")
			if pass(ttl); renewed(0) || !x.a.c.suspendExpired() || working.Held.Err() == nil || renewed(0) {
				t.Error("the session is not suspended, or is resumed by an answer that came too late")
			}
			if !renewed(ttl) || !x.a.c.valid() {
				t.Error("the session does not resume after a renewal")
			}
		})
	}
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
		want             time.Duration // after the sending; if it is not answered, never
	}{
		"answered at once":         {time.Millisecond, -time.Hour, 2 * time.Second},
		"answered late":            {3 * time.Second, -time.Hour, 3500 * time.Millisecond},
		"unanswered":               {0, -time.Hour, time.Hour},
		"the watch is opened then": {time.Millisecond, 4 * time.Second, 5 * time.Second},
	}
	for name, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			c, sent := newClaimer(), time.Now()
			c.pending = &write{N: 2, sent: sent}
			if tt.answered > 0 {
				c.pending.answered = sent.Add(tt.answered)
			}
			for _, late := range []time.Duration{0, time.Millisecond} {
				<-time.After(time.Until(sent.Add(tt.want + late)))
				if got := c.lags(sent.Add(tt.opened)); got != (late > 0 && tt.answered > 0) {
					t.Errorf("%s: after %v it lags: %t", name, tt.want+late, got)
				}
			}
		})
	}
}
