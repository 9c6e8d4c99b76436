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

func newLog(name, meanwhile, advice string) (*outage.Log, *bytes.Buffer) {
	var lines bytes.Buffer
	h := slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return &outage.Log{
		Logger: slog.New(h), Level: slog.LevelWarn,
		Begins: name + " is unreachable: " + meanwhile, Ends: name + " is reachable again", Hint: advice,
	}, &lines
}

// call is one call of a test: it was answered, or failed with an error and a hint.
type call struct {
	err      string
	hint     string
	answered bool
	after    time.Duration // since the previous call
	took     time.Duration
}

func TestLog(t *testing.T) {
	tests := map[string]struct {
		calls  []call
		want   []string
		advice string
	}{
		"answered":      {calls: []call{{answered: true}, {answered: true}}},
		"the first try": {calls: []call{{err: "refused"}}, want: []string{`level=WARN msg="etcd is unreachable: events wait" error=refused`}},
		"one outage": {
			calls: []call{{err: "port 1 refused"}, {err: "port 22 refused"}, {err: "port 1 refused", after: 1500 * time.Millisecond}, {answered: true}, {answered: true}},
			want:  []string{`level=WARN msg="etcd is unreachable: events wait" error="port 1 refused"`, `level=INFO msg="etcd is reachable again" after=1.5s`},
		},
		"two causes by turns": {
			calls: []call{{err: "refused"}, {err: "timeout"}, {err: "refused"}, {err: "timeout"}},
			want:  []string{`level=WARN msg="etcd is unreachable: events wait" error=refused`, `level=WARN msg="etcd is unreachable: events wait" error=timeout`},
		},
		"two outages": {
			calls: []call{{err: "a"}, {answered: true, after: time.Hour}, {answered: true}, {err: "b"}, {answered: true, after: 123456 * time.Microsecond}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error=a`, `level=INFO msg="etcd is reachable again" after=1h0m0s`,
				`level=WARN msg="etcd is unreachable: events wait" error=b`, `level=INFO msg="etcd is reachable again" after=123ms`},
		},
		"an answer from before the outage": {
			calls: []call{{err: "refused"}, {answered: true, took: 2 * time.Second, after: time.Second}, {answered: true, after: time.Second}},
			want:  []string{`level=WARN msg="etcd is unreachable: events wait" error=refused`, `level=INFO msg="etcd is reachable again" after=2s`},
		},
		"a failure from before the end": {
			calls: []call{{err: "refused"}, {answered: true, after: time.Second}, {err: "timeout", took: time.Second, after: time.Millisecond}, {err: "refused", took: time.Second, after: time.Minute}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error=refused`, `level=INFO msg="etcd is reachable again" after=1s`,
				`level=WARN msg="etcd is unreachable: events wait" error=refused`},
		},
		"with hint": {
			calls: []call{{err: "no space", hint: "defrag"}, {err: "no space", hint: "defrag"}, {answered: true}},
			want:  []string{`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`, `level=INFO msg="etcd is reachable again" after=0s`},
		},
		"advice": {
			calls: []call{{err: "refused"}, {err: "no space", hint: "defrag"}, {err: "refused"}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error=refused hint="check its address"`,
				`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`},
			advice: "check its address",
		},
		"hint that comes later": {
			calls: []call{{err: "refused"}, {err: "no space", hint: "defrag"}, {err: "refused"}, {err: "no space", hint: "defrag"}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error=refused`,
				`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`},
		},
		"other hint": {
			calls: []call{{err: "no space", hint: "defrag"}, {err: "denied", hint: "grant"}, {answered: true, after: time.Second}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`,
				`level=WARN msg="etcd is unreachable: events wait" error=denied hint=grant`, `level=INFO msg="etcd is reachable again" after=1s`},
		},
		"the same hint in the next outage": {
			calls: []call{{err: "no space", hint: "defrag"}, {answered: true}, {err: "no space", hint: "defrag"}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`, `level=INFO msg="etcd is reachable again" after=0s`,
				`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`},
		},
		"the same hint later in the next outage": {
			calls: []call{{err: "no space", hint: "defrag"}, {answered: true}, {err: "refused"}, {err: "no space", hint: "defrag"}},
			want: []string{`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`, `level=INFO msg="etcd is reachable again" after=0s`,
				`level=WARN msg="etcd is unreachable: events wait" error=refused`,
				`level=WARN msg="etcd is unreachable: events wait" error="no space" hint=defrag`},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, lines := newLog("etcd", "events wait", tt.advice)
				for _, c := range tt.calls {
					if c.after > 0 {
						<-time.After(c.after)
					}
					began := time.Now().Add(-c.took)
					if c.answered {
						l.Answered(began)
					} else {
						l.Failed(began, errors.New(c.err), c.hint)
					}
				}
				want := strings.Join(tt.want, "\n")
				if diff := cmp.Diff(want, strings.TrimSuffix(lines.String(), "\n")); diff != "" {
					t.Errorf("log (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestManyCallers(t *testing.T) {
	l, lines := newLog("etcd", "events wait", "")
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
