package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen writes lines of text and, below them, lines that change. On a terminal the
// lower lines are redrawn in place. In a file or pipe, and with NO_COLOR, they are
// written like other lines whenever they have changed.
type screen struct {
	out  io.Writer
	live bool // out is a terminal: draw in place and use colours

	mu    sync.Mutex
	lower func() []string // returns the lower lines; nil: there are none
	drawn []string        // the lower lines that were written last
}

// newScreen returns a screen on a file, which need not be a terminal.
func newScreen(out *os.File) *screen {
	live := term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: live}
}

// interval returns the interval at which refresh should be called.
func (s *screen) interval() time.Duration {
	if s.live {
		return 100 * time.Millisecond
	}
	return time.Second
}

// below sets the function that returns the lower lines; nil removes them.
func (s *screen) below(lower func() []string) {
	s.mu.Lock()
	s.lower = lower
	s.mu.Unlock()
	s.refresh()
}

// refresh draws the lower lines if they have changed.
func (s *screen) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	if s.lower != nil {
		lines = s.lower()
	}
	if !slices.Equal(lines, s.drawn) && (s.live || lines != nil) {
		s.draw(nil, lines)
	}
}

// write writes lines of text.
func (s *screen) write(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		s.draw(lines, s.drawn)
		return
	}
	for _, line := range lines {
		fmt.Fprintln(s.out, line)
	}
}

// draw writes lines of text and then the lower lines. On a terminal they replace the
// lower lines that were drawn before. The caller holds the lock.
func (s *screen) draw(text, lower []string) {
	var b strings.Builder
	if s.live && len(s.drawn) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", len(s.drawn)) // move up and erase everything below
	}
	for _, line := range slices.Concat(text, lower) {
		b.WriteString(line + "\n")
	}
	s.drawn = lower
	io.WriteString(s.out, b.String()) // a single write does not flicker
}
