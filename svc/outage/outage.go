// Package outage tells an outage of a server in two lines of the log, one when
// it begins and one when it ends, however many calls fail in between.
package outage

import (
	"log/slog"
	"sync"
	"time"
)

// Log is the state of one server as its callers see it. The zero value is not
// usable; its methods may be called by many goroutines at once.
type Log struct {
	log       *slog.Logger
	server    string
	meanwhile string

	mu    sync.Mutex
	since time.Time // when the outage began; zero: there is none
	last  string    // the advice given last
}

// New returns a Log for server, which is a name for people: "etcd". Meanwhile
// says what an outage means: "events wait".
func New(log *slog.Logger, server, meanwhile string) *Log {
	return &Log{log: log, server: server, meanwhile: meanwhile}
}

// Failed notes a failed call and logs the first of an outage. Advice, which
// may be empty, says how to mend what does not mend by itself; it is logged
// again when it changes.
func (l *Log) Failed(err error, advice string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.since.IsZero() && (advice == "" || advice == l.last) {
		return
	}
	if l.since.IsZero() {
		l.since = time.Now()
	}
	l.last = advice
	args := []any{"error", err}
	if advice != "" {
		args = append(args, "mend", advice)
	}
	l.log.Warn(l.server+" is away: "+l.meanwhile, args...)
}

// Answered notes a call that was answered and logs the end of an outage.
func (l *Log) Answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		return
	}
	l.log.Info(l.server+" is back", "away", time.Since(l.since).Round(time.Millisecond))
	l.since, l.last = time.Time{}, ""
}

// Reached notes an answer to a call that needs less than others do: it says
// nothing about what was advised, so it ends only an outage without advice.
func (l *Log) Reached() {
	l.mu.Lock()
	advised := l.last != ""
	l.mu.Unlock()
	if !advised {
		l.Answered()
	}
}
