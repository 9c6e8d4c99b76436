package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The webhook's answers decide how often an event is posted. A failure is not remembered:
// once its cause is fixed, the event can be published again.
func TestAttempts(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		vars   []string
		want   []int // X-Attempt of each post
	}{
		"500":                  {500, nil, []int{1, 2, 3}},
		"408":                  {408, nil, []int{1, 2, 3}},
		"500, MAX_ATTEMPTS=1":  {500, []string{"MAX_ATTEMPTS=1"}, []int{1}},
		"500, MAX_ATTEMPTS=5":  {500, []string{"MAX_ATTEMPTS=5"}, []int{1, 2, 3, 4, 5}},
		"400":                  {400, nil, []int{1}},
		"404":                  {404, nil, []int{1}},
		"501":                  {501, nil, []int{1}},
		"redirect":             {307, nil, []int{1}},
		"no answer in time":    {0, []string{"HANDLER_TIMEOUT=300ms"}, []int{1, 2, 3}},
		"no answer, once only": {0, []string{"HANDLER_TIMEOUT=300ms", "MAX_ATTEMPTS=1"}, []int{1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e := newProxiedEnv(t)
			var fixed atomic.Bool
			release := make(chan struct{})
			receiver := newReceiver(t, func(p post) int {
				if p.ID != "bad0" || fixed.Load() {
					return http.StatusOK
				}
				if tt.status == 0 {
					<-release
					return http.StatusTeapot
				}
				return tt.status
			})
			s := e.start("orders", append([]string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL}, tt.vars...)...)
			s.waitLog("msg=consuming")
			began := time.Now()
			e.publishBodies(append(orders("bad", 1), orders("good", 50)...)...)
			s.waitLogs(50, "msg=processed", "id=good")
			good := time.Since(began)
			s.waitLog("msg=dead-lettered", "id=bad0", "reason=failed")
			took := time.Since(began)
			close(release)
			eventually(t, "the tries", func() error {
				if diff := cmp.Diff(tt.want, slices.Sorted(slices.Values(receiver.attempts("bad0")))); diff != "" {
					return fmt.Errorf("attempts (-want +got):\n%s", diff)
				}
				return nil
			})
			eventually(t, "a released claim", func() error {
				if keys := e.keys("orders"); keys.done()["bad0"] || keys.claimed()["bad0"] {
					return errNotYet
				}
				return nil
			})
			letters := e.deadLetters("orders")
			if len(letters) != 1 || string(letters[0].Body) != orders("bad", 1)[0] ||
				letters[0].Headers["x-reason"] != "failed" || letters[0].Headers["x-attempts"] != int32(len(tt.want)) {
				t.Fatalf("dead letters are %v", letters)
			}
			t.Logf("50 others after %v, dead-lettered after %v: %v", good.Round(time.Millisecond), took.Round(time.Millisecond), letters[0].Headers["x-error"])

			fixed.Store(true)
			e.publishBodies(string(letters[0].Body))
			s.waitLog("msg=processed", "id=bad0")
			e.waitCounts(map[string]int64{"orders_new_order_ok": 51, "orders_new_order_failed": 1})
			e.wantAllDone("orders", 51)
			s.stop()
		})
	}
}

// attempts returns the attempt numbers of the posts of an id.
func (s *receiver) attempts(id string) (attempts []int) {
	for _, p := range s.all() {
		if p.ID == id {
			attempts = append(attempts, p.Attempt)
		}
	}
	return attempts
}

// The service waits as long as Retry-After asks, and such an answer does not count as
// an attempt.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const asked = 2 * time.Second
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			e := newProxiedEnv(t)
			var mu sync.Mutex
			var at []time.Time
			var attempts []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				mu.Lock()
				defer mu.Unlock()
				at, attempts = append(at, time.Now()), append(attempts, r.Header.Get("X-Attempt"))
				if len(at) <= 2 {
					w.Header().Set("Retry-After", fmt.Sprint(asked.Seconds()))
					w.WriteHeader(status)
				}
			}))
			t.Cleanup(server.Close)
			s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+server.URL, "MAX_ATTEMPTS=1")
			e.publishBodies(orders("ra", 1)...)
			s.waitLog("msg=processed", "id=ra0")
			s.stop()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff([]string{"1", "1", "1"}, attempts); diff != "" {
				t.Fatalf("attempts (-want +got):\n%s", diff)
			}
			for i := range 2 {
				if gap := at[i+1].Sub(at[i]); gap < asked || gap > 2*asked {
					t.Errorf("the next post came after %v, Retry-After was %v", gap, asked)
				}
			}
		})
	}
}

// With CONCURRENCY=1 events are handled in the order of their delivery.
func TestOrder(t *testing.T) {
	const ids = 200
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, func(p post) int {
		if strings.HasSuffix(p.ID, "7") && p.Attempt == 1 {
			return http.StatusInternalServerError // retried before the next event
		}
		return http.StatusOK
	})
	e.publishBodies(orders("n", ids)...)
	s := e.start("orders", "ENABLE_ETCD=true", "CONCURRENCY=1", "WEBHOOK_URL="+receiver.URL)
	e.waitCounts(map[string]int64{"orders_new_order_ok": ids})
	s.stop()
	next := 0
	for _, p := range receiver.all() {
		if want := fmt.Sprint("n", next); p.ID != want {
			t.Fatalf("%s was posted, want %s", p.ID, want)
		}
		if p.Status == http.StatusOK {
			next++
		}
	}
	e.wantAllDone("orders", ids)
}
