package outage_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/outage"
)

func newLog(hint string) (*outage.Log, *bytes.Buffer) {
	var lines bytes.Buffer
	h := slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return &outage.Log{Logger: slog.New(h), Level: slog.LevelWarn, Begins: "down", Ends: "up", Hint: hint}, &lines
}

// call is one call of a test: it failed with an error and a hint, or was answered.
type call struct {
	err   string // empty: it was answered
	hint  string
	after time.Duration // since the previous call
	took  time.Duration
}

func TestLog(t *testing.T) {
	const (
		refusedLine = "level=WARN msg=down error=refused\n"
		noSpaceLine = "level=WARN msg=down error=\"no space\" hint=defrag\n"
	)
	up := func(after string) string { return "level=INFO msg=up after=" + after + "\n" }
	answered, refused, timeout, noSpace := call{}, call{err: "refused"}, call{err: "timeout"}, call{err: "no space", hint: "defrag"}
	tests := map[string]struct {
		hint  string // of the Log
		calls []call
		want  string
	}{
		"answered":      {"", []call{answered, answered}, ""},
		"the first try": {"", []call{refused}, refusedLine},
		"one outage": {
			"", []call{{err: "port 1 refused"}, {err: "port 22 refused"}, {err: "port 1 refused", after: 1500 * time.Millisecond}, answered, answered},
			"level=WARN msg=down error=\"port 1 refused\"\n" + up("1.5s"),
		},
		"two causes by turns": {"", []call{refused, timeout, refused, timeout}, refusedLine + "level=WARN msg=down error=timeout\n"},
		"two outages": {
			"", []call{refused, {after: time.Hour}, answered, refused, {after: 123456 * time.Microsecond}},
			refusedLine + up("1h0m0s") + refusedLine + up("123ms"),
		},
		"an answer from before the outage": {"", []call{refused, {took: 2 * time.Second, after: time.Second}, {after: time.Second}}, refusedLine + up("2s")},
		"a failure from before the end": {
			"", []call{refused, {after: time.Second}, {err: "timeout", took: time.Second, after: time.Millisecond}, {err: "refused", took: time.Second, after: time.Minute}},
			refusedLine + up("1s") + refusedLine,
		},
		"with a hint":                 {"", []call{noSpace, {err: "still no space", hint: "defrag"}, answered}, noSpaceLine + up("0s")},
		"the Log's hint":              {"check its address", []call{refused, noSpace, refused}, "level=WARN msg=down error=refused hint=\"check its address\"\n" + noSpaceLine},
		"a hint that comes later":     {"", []call{refused, noSpace, refused, noSpace}, refusedLine + noSpaceLine},
		"another hint":                {"", []call{noSpace, {err: "denied", hint: "grant"}, {after: time.Second}}, noSpaceLine + "level=WARN msg=down error=denied hint=grant\n" + up("1s")},
		"one hint in two outages":     {"", []call{noSpace, answered, noSpace}, noSpaceLine + up("0s") + noSpaceLine},
		"later in the second of them": {"", []call{noSpace, answered, refused, noSpace}, noSpaceLine + up("0s") + refusedLine + noSpaceLine},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, lines := newLog(tt.hint)
				for _, c := range tt.calls {
					<-time.After(c.after)
					began := time.Now().Add(-c.took)
					if c.err == "" {
						l.Answered(began)
					} else {
						l.Failed(began, errors.New(c.err), c.hint)
					}
				}
				if diff := cmp.Diff(tt.want, lines.String()); diff != "" {
					t.Errorf("log (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestManyCallers(t *testing.T) {
	l, lines := newLog("")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { l.Failed(time.Now(), errors.New("refused"), "") })
	}
	wg.Wait()
	for range 50 {
		wg.Go(func() { l.Answered(time.Now()) })
	}
	wg.Wait()
	if n := strings.Count(lines.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2:\n%s", n, lines)
	}
}
