package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

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
	var lower []string
	if s.lower != nil {
		lower = s.lower()
	}
	if !slices.Equal(lower, s.drawn) {
		s.draw(nil, lower)
	}
}

// write writes lines of text.
func (s *screen) write(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draw(lines, s.drawn)
}

// draw writes lines of text and then the lower lines. On a terminal they replace the
// lower lines that were drawn before; otherwise they are left out if nothing has changed.
// The caller holds the lock.
func (s *screen) draw(text, lower []string) {
	var b strings.Builder
	if s.live && len(s.drawn) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", len(s.drawn)) // move up and erase everything below
	}
	if s.live || !slices.Equal(lower, s.drawn) {
		text = slices.Concat(text, lower)
	}
	for _, line := range text {
		b.WriteString(line + "\n")
	}
	s.drawn = lower
	io.WriteString(s.out, b.String()) // a single write does not flicker
}
