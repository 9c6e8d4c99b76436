package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
	"golang.org/x/term"
)

// columns is the width of the terminal that the output fits.
const columns = 80

// tailLines is the number of lines of each service's log that are shown after a failure.
const tailLines = 6

// ANSI colours.
const (
	bold   = "1"
	dim    = "2"
	red    = "1;31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	white  = "1;7"
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

func (s *screen) paint(colour, text string) string {
	if !s.live || text == "" || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) title(text string) { s.write(s.paint(bold, text)) }
func (s *screen) note(text string)  { s.paragraph(dim, "  ", text) }
func (s *screen) step(text string)  { s.paragraph("", "> ", text) }
func (s *screen) bad(text string)   { s.paragraph(red, "", text) }
func (s *screen) good(text string)  { s.paragraph(green+";1", "", text) }

// scene announces a scene.
func (s *screen) scene(number int, scene scene) {
	heading := fmt.Sprintf(" Scene %d of %d: %s ", number, len(scenes), scene.title)
	if !s.live {
		heading = "==" + heading + "=="
	}
	s.write(slices.Concat([]string{"", s.paint(white, heading)}, wrap("  ", scene.text), s.prompts(scene.commands))...)
}

// prompts returns lines that show commands as the audience would type them. A command
// may have several lines.
func (s *screen) prompts(commands []string) (lines []string) {
	for _, command := range commands {
		command = "  $ " + strings.ReplaceAll(command, "\n", "\n    ")
		for line := range strings.SplitSeq(command, "\n") {
			lines = append(lines, s.paint(cyan, line))
		}
	}
	return lines
}

// checks writes the checks of a scene: passed ones in two columns, each failed one on
// its own line.
func (s *screen) checks(checks []check) {
	s.refresh() // shows the final counters first
	var passed, failed []string
	for _, c := range checks {
		if c.failed() {
			failed = append(failed, s.paint(red, fmt.Sprintf("  ✗ %s: %d, want %d", c.what, c.got, c.want)))
		} else {
			passed = append(passed, fmt.Sprintf("✓ %-28s %5d", c.what, c.got))
		}
	}
	var lines []string
	for pair := range slices.Chunk(passed, 2) {
		lines = append(lines, s.paint(green, "  "+strings.Join(pair, "   ")))
	}
	s.write(append(lines, failed...)...)
}

// logs writes the end of each service's log, unformatted.
func (s *screen) logs(services []*harness.Process) {
	lines := []string{s.paint(bold, "The logs of the services end with")}
	for _, p := range services {
		for _, line := range p.Log.Tail(tailLines) {
			lines = append(lines, p.Name+": "+line)
		}
	}
	if len(lines) > 1 {
		s.write(lines...)
	}
}

// wait shows that the demo waits for something, and how long it has waited.
func (s *screen) wait(what string) {
	began := time.Now()
	s.below(func() []string {
		if !s.live {
			return []string{"  " + what + " ..."}
		}
		return []string{s.paint(dim, fmt.Sprintf("  %s ... %.0f s", what, time.Since(began).Seconds()))}
	})
}

// count shows the counters of the current view from now on.
func (s *screen) count(current func() view) {
	s.below(func() []string { return s.counters(current()) })
}

// prompt asks for Enter. It hides the counters until the next call of count, so that
// they are not drawn over the question.
func (s *screen) prompt(question string) {
	s.below(nil)
	s.write("")
	s.mu.Lock()
	defer s.mu.Unlock()
	io.WriteString(s.out, s.paint(bold, question))
}

// counters returns the lines that are drawn below the text: on a terminal a line for each
// service, otherwise as few lines as they need.
func (s *screen) counters(v view) []string {
	var services []string
	for _, service := range v.Services {
		services = append(services, fmt.Sprintf("  %s   ok %s   skipped %s   queued %s", s.paint(bold, service.Name),
			s.paint(green, fmt.Sprintf("%6d", service.OK)), s.paint(yellow, fmt.Sprintf("%6d", service.Skipped)),
			s.paint(cyan, fmt.Sprintf("%6s", service.Queued))))
	}
	if !s.live {
		return wrap("  ", strings.Join(services, " | "))
	}
	outage := ""
	if v.Outage != "" {
		outage = s.paint(red, "  "+v.Outage+" is down")
	}
	return slices.Concat([]string{""}, services, []string{outage})
}

// paragraph writes a text in lines that fit the screen.
func (s *screen) paragraph(colour, indent, text string) {
	lines := wrap(indent, text)
	for i := range lines {
		lines[i] = s.paint(colour, lines[i])
	}
	s.write(lines...)
}

// wrap breaks a text into lines that fit the screen.
func wrap(indent, text string) (lines []string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if line != indent && len(line)+len(word) > columns {
			lines = append(lines, strings.TrimRight(line, " "))
			line = strings.Repeat(" ", len(indent))
		}
		line += word + " "
	}
	return append(lines, strings.TrimRight(line, " "))
}
