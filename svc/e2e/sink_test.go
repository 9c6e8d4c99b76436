package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink is where the work is done: it takes the services' posts and keeps the
// accounts.
type sink struct {
	*httptest.Server
	// answer, if set, decides the status of a post; it may take its time. Done
	// work is what was answered with 2xx.
	answer func(p post) int

	mu      sync.Mutex
	posts   []post
	changed chan struct{}
}

type post struct {
	ID      string // as in the Idempotency-Key, without the role
	Role    string
	Token   int64
	Attempt int
	Body    string
	Status  int
	Began   time.Time
}

func newSink(t testing.TB, answer func(post) int) *sink {
	s := &sink{answer: answer, changed: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(s.handle))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *sink) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	role, id, _ := strings.Cut(r.Header.Get("Idempotency-Key"), "/")
	p := post{ID: id, Role: role, Body: string(body), Status: http.StatusNoContent, Began: time.Now()}
	p.Token, _ = strconv.ParseInt(r.Header.Get("X-Fencing-Token"), 10, 64)
	p.Attempt, _ = strconv.Atoi(r.Header.Get("X-Attempt"))
	if s.answer != nil {
		p.Status = s.answer(p)
	}
	s.mu.Lock()
	s.posts = append(s.posts, p)
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	w.WriteHeader(p.Status)
}

// work returns the done work: for each id, the tokens it was done with. The
// same token again is the same work, asked for again.
func (s *sink) work() map[string]map[int64]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	work := make(map[string]map[int64]int)
	for _, p := range s.posts {
		if p.Status/100 != 2 {
			continue
		}
		if work[p.ID] == nil {
			work[p.ID] = make(map[int64]int)
		}
		work[p.ID][p.Token]++
	}
	return work
}

func (s *sink) all() []post {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]post(nil), s.posts...)
}

// wait waits until ok is true of the posts so far.
func (s *sink) wait(t testing.TB, what string, ok func(posts []post) bool) {
	t.Helper()
	timeout := time.After(maxWait)
	for {
		s.mu.Lock()
		good, changed := ok(s.posts), s.changed
		s.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the sink waits for %s: %d posts", what, len(s.all()))
		}
	}
}

// accounts compares the done work with the n ids of that prefix: how many were
// never done, and how many more than once.
func (s *sink) accounts(prefix string, n int) (lost, twice int) {
	work := s.work()
	for i := range n {
		switch done := work[fmt.Sprintf("%s%d", prefix, i)]; len(done) {
		case 0:
			lost++
		case 1:
		default:
			twice++
		}
	}
	return lost, twice
}
