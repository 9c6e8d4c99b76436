package e2e

import (
	"context"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

type post = harness.Post

// receiver is a harness.Receiver that the end of the test closes.
type receiver struct{ *harness.Receiver }

// newReceiver starts a receiver. If answer is nil, it answers 204 at once.
func newReceiver(t testing.TB, answer func(post) int) *receiver {
	var withContext harness.Answer
	if answer != nil {
		withContext = func(_ context.Context, p post) int { return answer(p) }
	}
	s := &receiver{harness.NewReceiver(withContext)}
	t.Cleanup(s.Close)
	return s
}

func (s *receiver) all() []post { return s.Posts() }

// wait waits until ok returns true for the posts.
func (s *receiver) wait(t testing.TB, what string, ok func(posts []post) bool) {
	t.Helper()
	if err := s.Wait(deadline(t), ok); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

// accounts returns how many of the n ids with that prefix orders has never done, and how
// many it has done more than once.
func (s *receiver) accounts(prefix string, n int) (lost, twice int) {
	_, lost, twice = s.Accounts("orders", idsOf(prefix, n))
	return lost, twice
}

func idsOf(prefix string, n int) []string { return harness.IDs(prefix, 0, n) }
