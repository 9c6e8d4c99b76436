package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// receiver is where the services do their work in some scenes: a web server that
// keeps the accounts. Work is done when its answer could be sent.
type receiver struct {
	url    string
	server *http.Server
	delay  atomic.Int64 // how long the work takes, a time.Duration

	mu    sync.Mutex
	begun map[string]int             // by role
	done  map[string]map[string]bool // tokens, by role/id
}

func startReceiver() (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the webhook receiver: %w", err)
	}
	s := &receiver{url: "http://" + listener.Addr().String(), begun: map[string]int{}, done: map[string]map[string]bool{}}
	s.server = &http.Server{Handler: s}
	go s.server.Serve(listener) // until close
	return s, nil
}

func (s *receiver) close() { s.server.Close() }

func (s *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	key, token := r.Header.Get("Idempotency-Key"), r.Header.Get("X-Fencing-Token")
	role, _, _ := strings.Cut(key, "/")
	s.mu.Lock()
	s.begun[role]++
	s.mu.Unlock()
	if delay := time.Duration(s.delay.Load()); delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done(): // who asked has died: the work breaks off
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done[key] == nil {
		s.done[key] = map[string]bool{}
	}
	s.done[key][token] = true // the same token again is the same work
	w.WriteHeader(http.StatusNoContent)
}

// started returns how often a role has begun work.
func (s *receiver) started(role string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.begun[role])
}

// accounts says of a role's ids how many were done once, not at all, and more
// than once.
func (s *receiver) accounts(role string, ids []string) (once, lost, twice int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		switch len(s.done[role+"/"+id]) {
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

// reset forgets all, for the next scene.
func (s *receiver) reset() {
	s.delay.Store(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.begun)
	clear(s.done)
}
