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

// screen is the terminal: lines of text, and below them what changes. On a real
// terminal, the lines below are drawn in place. Elsewhere, and with NO_COLOR,
// they are written like other lines when they have changed.
type screen struct {
	out  io.Writer
	live bool

	mu    sync.Mutex
	lower func() []string // the lines below, nil: none
	drawn []string        // of them, the last that were written
}

// newScreen returns a screen on a file, which is a terminal or not.
func newScreen(out *os.File) *screen {
	live := term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: live}
}

// interval is how often refresh should be called.
func (s *screen) interval() time.Duration {
	if s.live {
		return 100 * time.Millisecond
	}
	return time.Second
}

// below sets the lines below the text from now on; nil removes them.
func (s *screen) below(lower func() []string) {
	s.mu.Lock()
	s.lower = lower
	s.mu.Unlock()
	s.refresh()
}

// refresh draws the lines below if they have changed.
func (s *screen) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lines := s.lowerLines(); !slices.Equal(lines, s.drawn) && (s.live || lines != nil) {
		s.draw(nil, lines)
	}
}

// write writes lines of text.
func (s *screen) write(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		s.draw(lines, s.lowerLines())
		return
	}
	for _, line := range lines {
		fmt.Fprintln(s.out, line)
	}
}

func (s *screen) lowerLines() []string {
	if s.lower == nil {
		return nil
	}
	return s.lower()
}

// draw writes lines of text and the lines below them. On a terminal these replace
// the lines that were drawn below before. It is called with the lock held.
func (s *screen) draw(text, lower []string) {
	var b strings.Builder
	if s.live && len(s.drawn) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", len(s.drawn)) // up, and erase from there on
	}
	for _, line := range slices.Concat(text, lower) {
		b.WriteString(line + "\n")
	}
	s.drawn = lower
	io.WriteString(s.out, b.String()) // one write: nothing flickers
}
