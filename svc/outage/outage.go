// Package outage logs an outage of a server in two lines, one when it begins and
// one when it ends, however many calls fail in between.
package outage

import (
	"cmp"
	"log/slog"
	"sync"
	"time"
)

// Log is the state of one server as its callers see it. The zero value is not
// usable; its methods may be called by many goroutines at once.
//
// Callers pass when the call began that failed or was answered, and a call that
// began before the last change is not logged. Otherwise the last calls from
// before a change would log the opposite for a moment.
type Log struct {
	log       *slog.Logger
	server    string
	meanwhile string
	advice    string

	mu          sync.Mutex
	unreachable bool
	changed     time.Time // the last change of unreachable
	hint        string    // the last one logged
}

// New returns a Log for server, a name such as "etcd". Meanwhile is the effect of an
// outage, such as "events wait". Advice is the hint of failures that have none of their own.
func New(log *slog.Logger, server, meanwhile, advice string) *Log {
	return &Log{log: log, server: server, meanwhile: meanwhile, advice: advice}
}

// Failed notes a failed call and logs the first of an outage. Hint, which may
// be empty, says how to fix what does not pass by itself; a new hint is logged
// again.
func (l *Log) Failed(began time.Time, err error, hint string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) || l.unreachable && (hint == "" || hint == l.hint) {
		return
	}
	if !l.unreachable {
		l.unreachable, l.changed = true, time.Now()
	}
	l.hint = hint
	args := []any{"error", err}
	if hint = cmp.Or(hint, l.advice); hint != "" {
		args = append(args, "hint", hint)
	}
	l.log.Warn(l.server+" is unreachable: "+l.meanwhile, args...)
}

// Answered notes a call that was answered and logs the end of an outage.
func (l *Log) Answered(began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) || !l.unreachable {
		return
	}
	now := time.Now()
	l.log.Info(l.server+" is reachable again", "after", now.Sub(l.changed).Round(time.Millisecond))
	l.unreachable, l.changed, l.hint = false, now, ""
}
