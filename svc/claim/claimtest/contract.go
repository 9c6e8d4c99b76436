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

// Process is a store as one process of several has it.
type Process struct {
	claim.Store
	// Expire ends the session of the process as a crash or a long stall does:
	// when it returns, its claims are gone.
	Expire func()
}

// Contract is what every claim.Store keeps. Each test calls open for new, empty
// records, and what open returns for one more process that shares them.
func Contract(t *testing.T, open func(t *testing.T) (process func() Process)) {
	tests := map[string]func(*testing.T, func() Process){
		"an absent id is granted":            grantAbsent,
		"a done id is done for everybody":    doneIsDone,
		"a lost answer is asked for again":   askAgain,
		"a released id is absent":            releaseFrees,
		"release of a lost claim is nothing": releaseLost,
		"an expired claim can be completed":  completeExpired,
		"a claim that was taken is lost":     completeTaken,
		"a lost session cancels the work":    sessionLost,
		"ids that differ are not one":        distinctIDs,
		"one of many is granted":             race,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func grantAbsent(t *testing.T, process func() Process) {
	a, b := process(), process()
	g := mustClaim(t, a, "1", claim.Granted)
	if g.ID != "1" || g.Token <= 0 || g.Held.Err() != nil {
		t.Errorf("granted %+v", g)
	}
	mustClaim(t, b, "1", claim.Busy)
}

func doneIsDone(t *testing.T, process func() Process) {
	a, b := process(), process()
	mustComplete(t, a, mustClaim(t, a, "1", claim.Granted))
	for _, p := range []Process{a, b} {
		answer, err := p.Claim("1")
		if err != nil || answer.State != claim.Done || answer.Life <= 0 {
			t.Errorf("got %+v, %v; want done, for some time", answer, err)
		}
	}
}

func askAgain(t *testing.T, process func() Process) {
	a := process()
	first := mustClaim(t, a, "1", claim.Granted)
	second := mustClaim(t, a, "1", claim.Granted)
	if first.Token != second.Token {
		t.Errorf("token %d became %d though the claim has not been away", first.Token, second.Token)
	}
	mustComplete(t, a, second)
}

func releaseFrees(t *testing.T, process func() Process) {
	a, b := process(), process()
	first := mustClaim(t, a, "1", claim.Granted)
	if err := a.Release(first); err != nil {
		t.Fatal(err)
	}
	second := mustClaim(t, b, "1", claim.Granted)
	if second.Token <= first.Token {
		t.Errorf("the token went from %d to %d with the new owner", first.Token, second.Token)
	}
}

func releaseLost(t *testing.T, process func() Process) {
	a, b := process(), process()
	lost := mustClaim(t, a, "1", claim.Granted)
	a.Expire()
	mustClaim(t, b, "1", claim.Granted)
	if err := a.Release(lost); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, a, "1", claim.Busy)
}

func completeExpired(t *testing.T, process func() Process) {
	a, b := process(), process()
	g := mustClaim(t, a, "1", claim.Granted)
	a.Expire()
	mustComplete(t, a, g)
	mustClaim(t, b, "1", claim.Done)
}

func completeTaken(t *testing.T, process func() Process) {
	a, b := process(), process()
	lost := mustClaim(t, a, "1", claim.Granted)
	a.Expire()
	g := mustClaim(t, b, "1", claim.Granted)
	if g.Token <= lost.Token {
		t.Errorf("the token went from %d to %d with the new owner", lost.Token, g.Token)
	}
	if _, err := a.Complete(lost); !errors.Is(err, claim.ErrLost) {
		t.Errorf("complete of a lost claim: %v", err)
	}
	mustComplete(t, b, g)
	mustClaim(t, a, "1", claim.Done)
}

func sessionLost(t *testing.T, process func() Process) {
	a := process()
	g := mustClaim(t, a, "1", claim.Granted)
	a.Expire()
	select {
	case <-g.Held.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the work goes on after its session")
	}
	if cause := context.Cause(g.Held); !errors.Is(cause, claim.ErrSessionLost) {
		t.Errorf("cause is %v", cause)
	}
	next := mustClaim(t, a, "1", claim.Granted)
	if next.Held.Err() != nil {
		t.Error("the next claim is under a session that is lost")
	}
	mustComplete(t, a, next)
}

func distinctIDs(t *testing.T, process func() Process) {
	a := process()
	ids := []string{"a", "A", "a/", "/a", "a//b", "../a", "a\x00", "a\x00b", "\x00", "a\n", "%61", "\u00e1", "a\u0301", "注文",
		" ", ".", "..", strings.Repeat("x", 512), strings.Repeat("x", 511)}
	for _, id := range ids {
		mustComplete(t, a, mustClaim(t, a, id, claim.Granted))
	}
	for _, id := range ids {
		mustClaim(t, a, id, claim.Done)
	}
}

func race(t *testing.T, process func() Process) {
	const processes, ids = 3, 300
	var granted [ids][]int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range processes {
		p := process()
		for i := range ids {
			wg.Go(func() {
				answer, err := p.Claim(fmt.Sprint(i))
				if err != nil {
					t.Error(err)
				}
				if answer.State != claim.Granted {
					return
				}
				mu.Lock()
				granted[i] = append(granted[i], answer.Grant.Token)
				mu.Unlock()
				if _, err := p.Complete(answer.Grant); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i, tokens := range granted {
		if len(tokens) != 1 {
			t.Errorf("id %d was granted with tokens %v, want one", i, tokens)
		}
	}
}

func mustClaim(t *testing.T, p Process, id string, want claim.State) claim.Grant {
	t.Helper()
	answer, err := p.Claim(id)
	if err != nil || answer.State != want {
		t.Fatalf("claim of %.20q: %v, %v; want %v", id, answer.State, err, want)
	}
	return answer.Grant
}

func mustComplete(t *testing.T, p Process, g claim.Grant) {
	t.Helper()
	if life, err := p.Complete(g); err != nil || life <= 0 {
		t.Fatalf("complete of %.20q: %v, %v", g.ID, life, err)
	}
}
