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

// screen is the terminal. On a real one, the counters are at the bottom and are
// updated in place. Elsewhere, and with NO_COLOR, they are lines like others.
type screen struct {
	out   io.Writer
	live  bool
	watch func() view // the counters, nil: there are none yet

	mu      sync.Mutex
	bottom  []string // the lines of counters that are drawn below the text
	waiting string   // what the audience is waiting for
	since   time.Time
	asked   bool     // a prompt is waiting for Enter, nothing may be drawn over it
	status  []string // the last lines of counters, where they are lines

	closing    sync.Once
	quit, done chan struct{}
}

// newScreen returns a screen on a file, which is a terminal or not.
func newScreen(out *os.File) *screen {
	live := term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return openScreen(out, live)
}

func openScreen(out io.Writer, live bool) *screen {
	s := &screen{out: out, live: live, quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

// run redraws what moves.
func (s *screen) run() {
	defer close(s.done)
	interval := 100 * time.Millisecond
	if !s.live {
		interval = time.Second
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.tick()
		case <-s.quit:
			return
		}
	}
}

func (s *screen) tick() {
	if s.live {
		s.write()
	} else if lines := s.changed(); lines != nil {
		s.write(lines...)
	}
}

// changed returns the counters as lines, if there is anything new in them.
func (s *screen) changed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil || s.asked {
		return nil
	}
	lines := statusLines(s.watch())
	if slices.Equal(lines, s.status) {
		return nil
	}
	s.status = lines
	return lines
}

// close leaves what is drawn as it is. A second call does nothing.
func (s *screen) close() {
	s.closing.Do(func() {
		close(s.quit)
		<-s.done
	})
}

// write writes lines of text, and the counters below them.
func (s *screen) write(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	moving := s.moving()
	if len(lines) == 0 && slices.Equal(moving, s.bottom) {
		return
	}
	var b strings.Builder
	if len(s.bottom) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", len(s.bottom)) // up, and clear what is below
	}
	for _, line := range append(lines, moving...) {
		b.WriteString(line + "\n")
	}
	s.bottom = moving
	io.WriteString(s.out, b.String()) // one write: nothing flickers
}

// moving returns the lines below the text. It is called with the lock held.
func (s *screen) moving() (lines []string) {
	if s.asked || !s.live {
		return nil
	}
	if s.waiting != "" {
		lines = append(lines, s.paint(dim, fmt.Sprintf("  %s ... %.0f s", s.waiting, time.Since(s.since).Seconds())))
	}
	if s.watch == nil {
		return lines
	}
	v := s.watch()
	lines = append(lines, "")
	for _, service := range v.Services {
		lines = append(lines, fmt.Sprintf("  %s   ok %s   skipped %s   waiting %s", s.paint(bold, service.Name),
			s.paint(green, fmt.Sprintf("%6d", service.OK)), s.paint(yellow, fmt.Sprintf("%6d", service.Skipped)),
			s.paint(cyan, waiting(service.Waiting, "%6s"))))
	}
	if v.Outage != "" {
		return append(lines, s.paint(red, "  "+v.Outage+" is down"))
	}
	return append(lines, "")
}

// statusLines has the counters of both services on one line, if it can hold them.
func statusLines(v view) (lines []string) {
	for _, service := range v.Services {
		part := fmt.Sprintf("%s ok %d skipped %d waiting %s",
			service.Name, service.OK, service.Skipped, waiting(service.Waiting, "%s"))
		if n := len(lines); n > 0 && len(lines[n-1])+3+len(part) <= columns {
			lines[n-1] += " | " + part
		} else {
			lines = append(lines, "  "+part)
		}
	}
	return lines
}

// waiting is the depth of a queue, which is unknown while the broker is unreachable.
func waiting(n int64, format string) string {
	if n < 0 {
		return fmt.Sprintf(format, "?")
	}
	return fmt.Sprintf(format, fmt.Sprint(n))
}
