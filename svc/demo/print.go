package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// What is written to the screen, 80 columns wide.

const columns = 80

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

func (s *screen) paint(colour, text string) string {
	if !s.live || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) title(text string) { s.write(s.paint(bold, text)) }
func (s *screen) note(text string)  { s.write(s.painted(dim, "  ", text)...) }
func (s *screen) step(text string)  { s.write(s.painted("", "> ", text)...) }
func (s *screen) bad(text string)   { s.write(s.painted(red, "", text)...) }
func (s *screen) good(text string) {
	s.write(s.painted(green+";1", "", text)...)
}

// scene announces a scene.
func (s *screen) scene(number int, scene scene) {
	heading := fmt.Sprintf(" Scene %d of %d: %s ", number, len(scenes), scene.title)
	if !s.live {
		heading = "==" + heading + "=="
	}
	lines := append([]string{"", s.paint(white, heading)}, wrap("  ", scene.text)...)
	s.write(append(lines, s.prompts(scene.commands)...)...)
}

// prompts are lines with what one would type. A command may have several.
func (s *screen) prompts(commands []string) (lines []string) {
	for _, command := range commands {
		command = "  $ " + strings.ReplaceAll(command, "\n", "\n    ")
		for line := range strings.SplitSeq(command, "\n") {
			lines = append(lines, s.paint(cyan, line))
		}
	}
	return lines
}

// checks writes what a scene is judged by: what is right in two columns, what is
// wrong on a line of its own.
func (s *screen) checks(checks []check) {
	s.tick() // the counters that they are about
	var right, wrong []string
	for _, f := range checks {
		if f.got == f.want {
			right = append(right, fmt.Sprintf("✓ %-28s %5d", f.what, f.got))
		} else {
			wrong = append(wrong, s.paint(red, fmt.Sprintf("  ✗ %s: %d, want %d", f.what, f.got, f.want)))
		}
	}
	var lines []string
	for pair := range slices.Chunk(right, 2) {
		lines = append(lines, s.paint(green, "  "+strings.Join(pair, "   ")))
	}
	s.write(append(lines, wrong...)...)
}

// logs writes the ends of the services' logs, as they are.
func (s *screen) logs(lines []string) {
	if len(lines) > 0 {
		s.write(append([]string{s.paint(bold, "The logs of the services end with")}, lines...)...)
	}
}

// wait says what the audience is waiting for, until it is called with "".
func (s *screen) wait(what string) {
	if what != "" && !s.live {
		s.write("  " + what + " ...")
	}
	s.mu.Lock()
	s.waiting, s.since = what, time.Now()
	s.mu.Unlock()
	s.write()
}

// count draws the counters of a show from now on.
func (s *screen) count(show *show) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = show.current
}

// prompt asks for Enter, and draws nothing until it is called with "".
func (s *screen) prompt(question string) {
	if question == "" {
		s.mu.Lock()
		s.asked = false
		s.mu.Unlock()
		return
	}
	s.mu.Lock()
	s.asked = true
	s.mu.Unlock()
	s.write("")
	s.mu.Lock()
	defer s.mu.Unlock()
	io.WriteString(s.out, s.paint(bold, question))
}

func (s *screen) painted(colour, indent, text string) []string {
	lines := wrap(indent, text)
	for i := range lines {
		if colour != "" {
			lines[i] = s.paint(colour, lines[i])
		}
	}
	return lines
}

// wrap breaks text into lines that fit the screen.
func wrap(indent, text string) (lines []string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if line != indent && len(line)+1+len(word) > columns {
			lines = append(lines, line)
			line = strings.Repeat(" ", len(indent))
		}
		if strings.TrimSpace(line) != "" && line != indent {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
