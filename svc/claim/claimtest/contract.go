package claimtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
)

// Claimer is what a consumer needs of claims: see consume.Claimer.
type Claimer interface {
	Claim(ctx context.Context, id string) (*claim.Claim, error)
	Reclaim(ctx context.Context, c *claim.Claim) error
	Check(ctx context.Context, c *claim.Claim) error
	Complete(c *claim.Claim) error
	Release(c *claim.Claim)
}

// Process is the claims of one process, with what can happen to its session.
type Process interface {
	Claimer
	Suspend() // the process loses touch with the records, and its session lives
	Expire()  // it does, and its session ends
	Resume()  // it reaches the records again
	Close()   // it stops
}

// answerTimeout is far more than any answer takes.
const answerTimeout = time.Minute

// Contract is what all claims keep. Each test calls open for new, empty records;
// what open returns makes one more process that shares them.
func Contract(t *testing.T, open func(t *testing.T) (process func() Process)) {
	tests := map[string]func(*testing.T, func() Process){
		"an absent id is granted, and done once it is completed":  completed,
		"a second delivery waits":                                 secondWaits,
		"a released id goes to the next":                          releasedToNext,
		"the token grows from process to process":                 tokenGrows,
		"a delivery that leaves is told why, and blocks no other": withdrawn,
		"a suspended claim goes on under its token":               suspended,
		"a lost claim has another token":                          lost,
		"a lost claim may be another's":                           lostToAnother,
		"work that had finished is recorded when it can be":       finishedThenLost,
		"a check tells whether the claim is held":                 checked,
		"the end of the process ends the waiting":                 closed,
		"ids that differ are not one":                             distinctIDs,
		"one of many is granted":                                  race,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func completed(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	if c.ID != "1" || c.Token <= 0 || c.Held.Err() != nil {
		t.Errorf("granted %+v", c)
	}
	mustComplete(t, a, c)
	mustBeDone(t, a, "1")
	mustBeDone(t, b, "1")
}

func secondWaits(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	same, other := claiming(t.Context(), a, "1"), claiming(t.Context(), b, "1")
	mustWait(t, a, same)
	mustWait(t, b, other)
	mustComplete(t, a, c)
	for _, waits := range []<-chan outcome{same, other} {
		if o := mustEnd(t, waits); !errors.Is(o.err, claim.ErrDone) {
			t.Errorf("the delivery that waited is told %v", o.err)
		}
	}
}

func releasedToNext(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	same := claiming(t.Context(), a, "1")
	mustWait(t, a, same)
	a.Release(c)
	o := mustEnd(t, same)
	if o.err != nil {
		t.Fatal(o.err)
	}
	a.Release(c) // ended: nothing
	other := claiming(t.Context(), b, "1")
	mustWait(t, b, other)
	a.Release(o.claim)
	if o = mustEnd(t, other); o.err != nil {
		t.Fatal(o.err)
	}
	mustComplete(t, b, o.claim)
	mustBeDone(t, a, "1")
}

func tokenGrows(t *testing.T, process func() Process) {
	processes := []Process{process(), process()}
	last := int64(0)
	for i := range 6 {
		p := processes[i%2]
		c := mustClaim(t, p, "1")
		if c.Token <= last {
			t.Errorf("owner %d has token %d after %d", i, c.Token, last)
		}
		last = c.Token
		p.Release(c)
	}
}

func withdrawn(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	ctx, cancel := context.WithCancelCause(t.Context())
	same, other := claiming(ctx, a, "1"), claiming(ctx, b, "1")
	mustWait(t, a, same)
	mustWait(t, b, other)
	reason := errors.New("the channel is lost")
	cancel(reason)
	for _, left := range []<-chan outcome{same, other} {
		if o := mustEnd(t, left); !errors.Is(o.err, reason) {
			t.Errorf("the delivery that left is told %v", o.err)
		}
	}
	a.Release(c)
	mustComplete(t, a, mustClaim(t, a, "1"))
}

func suspended(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	other := claiming(t.Context(), b, "1")
	mustWait(t, b, other)
	token := c.Token
	a.Suspend()
	mustBeSuspended(t, c)
	again := reclaiming(t.Context(), a, c)
	mustWait(t, b, other)
	a.Resume()
	if o := mustEnd(t, again); o.err != nil || c.Token != token || c.Held.Err() != nil {
		t.Fatalf("claimed again: %v, token %d after %d, held: %v", o.err, c.Token, token, c.Held.Err())
	}
	mustComplete(t, a, c)
	if o := mustEnd(t, other); !errors.Is(o.err, claim.ErrDone) {
		t.Errorf("the other process is told %v", o.err)
	}
}

func lost(t *testing.T, process func() Process) {
	a := process()
	c := mustClaim(t, a, "1")
	token := c.Token
	a.Expire()
	mustBeSuspended(t, c)
	again := reclaiming(t.Context(), a, c)
	a.Resume()
	if o := mustEnd(t, again); o.err != nil || c.Token <= token || c.Held.Err() != nil {
		t.Fatalf("claimed again: %v, token %d after %d, held: %v", o.err, c.Token, token, c.Held.Err())
	}
	mustComplete(t, a, c)
}

func lostToAnother(t *testing.T, process func() Process) {
	a, b := process(), process()
	c, left := mustClaim(t, a, "1"), mustClaim(t, a, "2")
	a.Expire()
	mustBeSuspended(t, c)
	theirs := mustClaim(t, b, "1")
	if theirs.Token <= c.Token {
		t.Errorf("the token went from %d to %d", c.Token, theirs.Token)
	}
	again := reclaiming(t.Context(), a, c)
	a.Release(left)
	a.Resume()
	mustWait(t, a, again)
	mustComplete(t, b, theirs)
	if o := mustEnd(t, again); !errors.Is(o.err, claim.ErrDone) {
		t.Errorf("the first process is told %v", o.err)
	}
	a.Release(c) // not its own any more: nothing
	mustComplete(t, b, mustClaim(t, b, "2"))
}

func finishedThenLost(t *testing.T, process func() Process) {
	a, b := process(), process()
	ours, theirs := mustClaim(t, a, "1"), mustClaim(t, a, "2")
	a.Expire()
	mustBeSuspended(t, ours)
	other := mustClaim(t, b, "2")
	ended := []chan error{make(chan error, 1), make(chan error, 1)}
	go func() { ended[0] <- a.Complete(ours) }()
	go func() { ended[1] <- a.Complete(theirs) }()
	a.Resume()
	if err := mustReturn(t, ended[0]); err != nil {
		t.Errorf("complete after the session: %v", err)
	}
	mustBeDone(t, b, "1")
	mustComplete(t, b, other)
	if err := mustReturn(t, ended[1]); !errors.Is(err, claim.ErrDone) {
		t.Errorf("complete of what another has recorded: %v", err)
	}
}

func checked(t *testing.T, process func() Process) {
	a := process()
	c := mustClaim(t, a, "1")
	if err := a.Check(t.Context(), c); err != nil {
		t.Errorf("a claim that is held: %v", err)
	}
	a.Suspend()
	mustBeSuspended(t, c)
	if err := a.Check(t.Context(), c); !errors.Is(err, claim.ErrSuspended) {
		t.Errorf("a claim that is suspended: %v", err)
	}
	again := reclaiming(t.Context(), a, c)
	a.Resume()
	if o := mustEnd(t, again); o.err != nil {
		t.Fatal(o.err)
	}
	if err := a.Check(t.Context(), c); err != nil {
		t.Errorf("a claim that is held again: %v", err)
	}
}

func closed(t *testing.T, process func() Process) {
	a, b := process(), process()
	c := mustClaim(t, a, "1")
	waits := claiming(t.Context(), b, "1")
	mustWait(t, b, waits)
	b.Close()
	if o := mustEnd(t, waits); !errors.Is(o.err, claim.ErrClosed) {
		t.Errorf("the delivery that waited is told %v", o.err)
	}
	mustComplete(t, a, c)
}

func distinctIDs(t *testing.T, process func() Process) {
	a, b := process(), process()
	ids := []string{"a", "A", "a/", "/a", "a//b", "../a", "a\x00", "a\x00b", "\x00", "a\n", "%61", "\u00e1", "a\u0301", "注文",
		" ", ".", "..", "<&>", `"`, `\`, "\u2028", strings.Repeat("x", 512), strings.Repeat("x", 511)}
	for _, id := range ids {
		mustComplete(t, a, mustClaim(t, a, id))
	}
	for _, id := range ids {
		mustBeDone(t, b, id)
	}
}

func race(t *testing.T, process func() Process) {
	const processes, ids = 3, 300
	var granted [ids]int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range processes {
		p := process()
		for i := range ids {
			wg.Go(func() {
				c, err := p.Claim(t.Context(), fmt.Sprint(i))
				if errors.Is(err, claim.ErrDone) {
					return
				}
				mu.Lock()
				granted[i]++
				mu.Unlock()
				if err == nil {
					err = p.Complete(c)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i, n := range granted {
		if n != 1 {
			t.Errorf("id %d was granted %d times", i, n)
		}
	}
}

// outcome is what a call of Claim or Reclaim came to.
type outcome struct {
	claim *claim.Claim
	err   error
}

func claiming(ctx context.Context, p Process, id string) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		c, err := p.Claim(ctx, id)
		ended <- outcome{c, err}
	}()
	return ended
}

func reclaiming(ctx context.Context, p Process, c *claim.Claim) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() { ended <- outcome{c, p.Reclaim(ctx, c)} }()
	return ended
}

// mustWait checks that a call goes on waiting when another claim of the process
// has come and gone.
func mustWait(t *testing.T, p Process, waits <-chan outcome) {
	t.Helper()
	p.Release(mustClaim(t, p, "another id"))
	select {
	case o := <-waits:
		t.Fatalf("the delivery did not wait: %+v, %v", o.claim, o.err)
	default:
	}
}

func mustEnd(t *testing.T, ended <-chan outcome) outcome {
	t.Helper()
	return receive(t, ended, "the delivery goes on waiting")
}

func mustReturn(t *testing.T, ended <-chan error) error {
	t.Helper()
	return receive(t, ended, "the call does not return")
}

// receive fails the test with otherwise if nothing arrives in time.
func receive[T any](t *testing.T, from <-chan T, otherwise string) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(answerTimeout):
		t.Fatal(otherwise)
	}
	return v
}

func mustBeSuspended(t *testing.T, c *claim.Claim) {
	t.Helper()
	select {
	case <-c.Held.Done():
	case <-time.After(answerTimeout):
		t.Fatal("the claim is not suspended")
	}
	if cause := context.Cause(c.Held); !errors.Is(cause, claim.ErrSuspended) {
		t.Errorf("Held has ended with %v", cause)
	}
}

func mustClaim(t *testing.T, p Process, id string) *claim.Claim {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	c, err := p.Claim(ctx, id)
	if err != nil {
		t.Fatalf("claim of %.20q: %v", id, err)
	}
	return c
}

func mustBeDone(t *testing.T, p Process, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	if c, err := p.Claim(ctx, id); !errors.Is(err, claim.ErrDone) {
		t.Errorf("claim of %.20q: %+v, %v, want that it is done", id, c, err)
	}
}

func mustComplete(t *testing.T, p Process, c *claim.Claim) {
	t.Helper()
	if err := p.Complete(c); err != nil {
		t.Fatalf("complete of %.20q: %v", c.ID, err)
	}
}
