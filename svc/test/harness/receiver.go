package harness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Receiver is a web server for the WEBHOOK_URL of services. It records their posts.
type Receiver struct {
	*httptest.Server
	answer Answer

	mu      sync.Mutex
	posts   []Post
	changed chan struct{} // closed and replaced when a post is recorded
}

// Answer returns the status of a post. It may block. ctx ends when the sender closes
// the connection. Status 0 closes the connection without an answer.
type Answer func(ctx context.Context, p Post) int

// Post is one request of a service. It is recorded when Answer has returned.
type Post struct {
	Role, ID string // the Idempotency-Key is role/ID
	Token    int64  // X-Fencing-Token
	Attempt  int    // X-Attempt
	Body     string
	Status   int
	Began    time.Time
	Ended    time.Time // when Answer returned
}

// NewReceiver starts a receiver on a free port of 127.0.0.1. If answer is nil, the
// receiver answers every post at once with 204.
func NewReceiver(answer Answer) *Receiver {
	if answer == nil {
		answer = func(context.Context, Post) int { return http.StatusNoContent }
	}
	r := &Receiver{answer: answer, changed: make(chan struct{})}
	r.Server = httptest.NewServer(http.HandlerFunc(r.handle))
	return r
}

// Close closes all connections and stops the server.
func (r *Receiver) Close() {
	r.CloseClientConnections()
	r.Server.Close()
}

func (r *Receiver) handle(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	role, id, _ := strings.Cut(req.Header.Get("Idempotency-Key"), "/")
	p := Post{Role: role, ID: id, Body: string(body), Began: time.Now()}
	p.Token, _ = strconv.ParseInt(req.Header.Get("X-Fencing-Token"), 10, 64)
	p.Attempt, _ = strconv.Atoi(req.Header.Get("X-Attempt"))

	p.Status = r.answer(req.Context(), p)
	p.Ended = time.Now()
	r.mu.Lock()
	r.posts = append(r.posts, p)
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()

	if p.Status == 0 {
		panic(http.ErrAbortHandler) // net/http's way to close the connection
	}
	w.WriteHeader(p.Status)
}

// Posts returns the posts recorded so far.
func (r *Receiver) Posts() []Post {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.posts)
}

// Wait waits until ok returns true for the recorded posts.
func (r *Receiver) Wait(ctx context.Context, ok func(posts []Post) bool) error {
	for {
		r.mu.Lock()
		good, changed, n := ok(r.posts), r.changed, len(r.posts)
		r.mu.Unlock()
		if good {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the receiver has %d posts: %w", n, ctx.Err())
		}
	}
}

// Work returns the work that was done for a role, by id and token: the number of posts
// answered with 2xx. Several posts with the same token are repetitions of the same work.
func (r *Receiver) Work(role string) map[string]map[int64]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	work := make(map[string]map[int64]int)
	for _, p := range r.posts {
		if p.Role != role || p.Status/100 != 2 {
			continue
		}
		if work[p.ID] == nil {
			work[p.ID] = make(map[int64]int)
		}
		work[p.ID][p.Token]++
	}
	return work
}

// Accounts returns how many of ids were done exactly once, never, and more than once
// for a role. Repetitions with the same token count as once.
func (r *Receiver) Accounts(role string, ids []string) (once, lost, twice int) {
	work := r.Work(role)
	for _, id := range ids {
		switch len(work[id]) {
		case 0:
			lost++
		case 1:
			once++
		default:
			twice++
		}
	}
	return once, lost, twice
}
