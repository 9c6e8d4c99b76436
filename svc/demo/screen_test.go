package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

var escape = regexp.MustCompile("\x1b\\[[0-9;]*[a-zA-Z]")

// Every line fits the screen, and only a terminal gets colours.
func TestScreenFits(t *testing.T) {
	for _, live := range []bool{false, true} {
		var out bytes.Buffer
		s := &screen{out: &out, live: live}
		for i, scene := range scenes {
			s.scene(i+1, scene)
		}
		s.step(strings.Repeat("long ", 40))
		s.checks([]check{{"work begun before the kill", 99999, 99999}, {"orders skipped, being down", 1, 1}, {"wrong", 1, 2}})
		s.count(func() view { return newStatus(nil).view })
		s.bad("bad")
		if got := strings.Contains(out.String(), "\x1b["); got != live {
			t.Errorf("escape sequences: %t, on a terminal: %t", got, live)
		}
		for line := range strings.Lines(escape.ReplaceAllString(out.String(), "")) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// New counters are drawn over the old ones.
func TestCountersInPlace(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.write("first")
	var v view
	v.Services[0].Name = "orders"
	s.count(func() view { return v })
	for i := range 3 {
		v.Services[0].OK = i + 1
		s.refresh()
		s.refresh() // draws nothing, because nothing has changed
	}
	var ok []string
	for line := range strings.Lines(escape.ReplaceAllString(out.String(), "")) {
		if n := 0; strings.Contains(line, "orders") {
			fmt.Sscanf(strings.TrimSpace(line), "orders   ok %d", &n)
			ok = append(ok, fmt.Sprint(n))
		}
	}
	if got := strings.Join(ok, " "); got != "0 1 2 3" {
		t.Errorf("orders ok is drawn as %s", got)
	}
	if got := strings.Count(out.String(), "\x1b[4A\x1b[J"); got != 3 {
		t.Errorf("the counters are redrawn %d times, want 3: %q", got, &out)
	}
}
