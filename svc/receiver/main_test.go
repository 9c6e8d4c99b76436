package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func post(h http.Handler, key, token string) int {
	r := httptest.NewRequest("POST", "/", strings.NewReader("body of "+key))
	r.Header.Set("Idempotency-Key", key)
	r.Header.Set("X-Fencing-Token", token)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

func effects(t *testing.T, store *bolt.DB) (n int) {
	t.Helper()
	w := httptest.NewRecorder()
	count(store)(w, nil)
	_, err := fmt.Fscan(w.Body, &n)
	must(t, err)
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReceive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	store, err := open(path)
	must(t, err)
	h := receive(store, 0)
	for i, step := range []struct {
		key, token    string
		code, effects int
	}{
		{"orders/1", "7", 200, 1},
		{"orders/1", "7", 200, 1}, // the answer was lost
		{"orders/1", "9", 200, 1}, // another process repeats the work after a crash of the first
		{"orders/1", "8", 412, 1}, // a process that has lost its claim
		{"orders/2", "6", 200, 2},
		{"", "6", 400, 2},
		{"orders/3", "", 400, 2},
	} {
		if code := post(h, step.key, step.token); code != step.code || effects(t, store) != step.effects {
			t.Errorf("step %d: answer %d with %d effects, want %d with %d", i, code, effects(t, store), step.code, step.effects)
		}
	}

	// The store remembers keys across a restart.
	must(t, store.Close())
	store, err = open(path)
	must(t, err)
	defer store.Close()
	const delay = 50 * time.Millisecond
	began := time.Now()
	if code := post(receive(store, delay), "orders/1", "9"); code != 200 || effects(t, store) != 2 {
		t.Errorf("after a restart: answer %d with %d effects", code, effects(t, store))
	}
	if took := time.Since(began); took < delay {
		t.Errorf("the answer took %v, want at least %v", took, delay)
	}
}

func TestReceiveManyAtOnce(t *testing.T) {
	store, err := open(filepath.Join(t.TempDir(), "db"))
	must(t, err)
	defer store.Close()
	h := receive(store, 0)
	var posts sync.WaitGroup
	for i := range 40 {
		posts.Go(func() {
			if code := post(h, fmt.Sprint("orders/", i%4), "5"); code != 200 {
				t.Errorf("answer %d", code)
			}
		})
	}
	posts.Wait()
	if n := effects(t, store); n != 4 {
		t.Errorf("%d effects of 4 keys", n)
	}
}
