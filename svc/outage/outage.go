// Package outage logs what lasts, such as an outage of a server: a line when it begins, a
// line when it ends, and none for the many calls that fail in between.
//
//	unreachable := &outage.Log{Logger: log, Level: slog.LevelWarn, Begins: "etcd is unreachable: events wait", Ends: "etcd is reachable again"}
//	began := time.Now()
//	if err := call(); err != nil {
//		unreachable.Failed(began, err, "")
//	} else {
//		unreachable.Answered(began)
//	}
package outage

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"sync"
	"time"
)

// Log is the state of one thing that can fail for a while, as its callers see it. Set the
// exported fields before the first call. Many goroutines may call its methods at once.
//
// Callers pass when the call began that failed or was answered, and a call that began before
// the last change is not counted. Otherwise the last calls from before a change would log the
// opposite for a moment.
type Log struct {
	Logger *slog.Logger
	Level  slog.Level // of the line that begins an outage
	Begins string     // that line's message
	Ends   string     // the message of the line that ends it, at level info; "": none
	Hint   string     // of errors that come without a hint; "": none

	mu      sync.Mutex
	err     error               // the last one of the outage; nil: there is none
	changed time.Time           // the last beginning or end
	causes  map[string]struct{} // those that were logged in this outage
}

// Failed notes a failed call. It logs the error if it is the first of its cause in this
// outage. The cause is the hint, which says how to fix what does not pass by itself, or
// without one the error's text, but for the numbers in it.
func (l *Log) Failed(began time.Time, err error, hint string, attrs ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) {
		return
	}
	if l.err == nil {
		l.changed, l.causes = time.Now(), make(map[string]struct{})
	}
	l.err = err
	hint = cmp.Or(hint, l.Hint)
	cause := cmp.Or(hint, numbers.ReplaceAllString(err.Error(), ""))
	if _, logged := l.causes[cause]; logged {
		return
	}
	l.causes[cause] = struct{}{}
	attrs = append([]any{"error", err}, attrs...)
	if hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	l.Logger.Log(context.Background(), l.Level, l.Begins, attrs...)
}

// numbers matches what may differ between two errors of one cause, such as local ports.
var numbers = regexp.MustCompile(`[0-9]+`)

// Answered notes a call that was answered, and logs the end of an outage.
func (l *Log) Answered(began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) || l.err == nil {
		return
	}
	now := time.Now()
	if l.Ends != "" {
		l.Logger.Info(l.Ends, "after", now.Sub(l.changed).Round(time.Millisecond))
	}
	l.err, l.changed = nil, now
}

// Err returns the last error of the outage, or nil if there is none.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
