package harness

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
)

// Log keeps the output of a process. Its methods may be called from several
// goroutines.
type Log struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced at each write, and at the end
	ended   bool          // the process has exited
}

func newLog() *Log { return &Log{changed: make(chan struct{})} }

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notify()
	return l.text.Write(p)
}

func (l *Log) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.notify()
}

// String returns everything written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count returns how many lines contain all parts.
func (l *Log) Count(parts ...string) int {
	_, n := match(l.String(), parts, -1)
	return n
}

// Tail returns the last n lines, without those about an event that was processed
// or skipped.
func (l *Log) Tail(n int) []string {
	var lines []string
	for line := range strings.Lines(l.String()) {
		if !strings.Contains(line, "msg=processed") && !strings.Contains(line, "msg=skipped") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines[max(0, len(lines)-n):]
}

// Wait waits for the n-th line that contains all parts, and returns it. It
// returns an error when ctx is done or the process exits before.
func (l *Log) Wait(ctx context.Context, n int, parts ...string) (line string, err error) {
	for {
		l.mu.Lock()
		text, changed, ended := l.text.String(), l.changed, l.ended
		l.mu.Unlock()
		line, found := match(text, parts, n)
		if found >= n {
			return line, nil
		}
		if ended {
			return "", fmt.Errorf("it ended with %d of %d lines with %q", found, n, parts)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("only %d of %d lines with %q: %w", found, n, parts, ctx.Err())
		}
	}
}

// match returns the n-th complete line of text that contains all parts, and how
// many such lines there are up to it.
func match(text string, parts []string, n int) (line string, found int) {
	for l := range strings.Lines(text) {
		all := strings.HasSuffix(l, "\n")
		for _, p := range parts {
			all = all && strings.Contains(l, p)
		}
		if all {
			found++
			if line = l; found == n {
				break
			}
		}
	}
	return line, found
}
