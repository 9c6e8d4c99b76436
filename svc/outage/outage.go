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
//
// They are told when the call began that failed or was answered: one from before
// the last change says nothing new. Among many calls at once there are always
// some, and each would have the server away or back for another moment.
type Log struct {
	log       *slog.Logger
	server    string
	meanwhile string

	mu      sync.Mutex
	away    bool
	changed time.Time // when that was last
	last    string    // the advice given last
}

// New returns a Log for server, which is a name for people: "etcd". Meanwhile
// says what an outage means: "events wait".
func New(log *slog.Logger, server, meanwhile string) *Log {
	return &Log{log: log, server: server, meanwhile: meanwhile}
}

// Failed notes a failed call and logs the first of an outage. Advice, which
// may be empty, says how to mend what does not mend by itself; it is logged
// again when it changes.
func (l *Log) Failed(began time.Time, err error, advice string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) || l.away && (advice == "" || advice == l.last) {
		return
	}
	if !l.away {
		l.away, l.changed = true, time.Now()
	}
	l.last = advice
	args := []any{"error", err}
	if advice != "" {
		args = append(args, "mend", advice)
	}
	l.log.Warn(l.server+" is away: "+l.meanwhile, args...)
}

// Answered notes a call that was answered and logs the end of an outage.
func (l *Log) Answered(began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if began.Before(l.changed) || !l.away {
		return
	}
	now := time.Now()
	l.log.Info(l.server+" is back", "away", now.Sub(l.changed).Round(time.Millisecond))
	l.away, l.changed, l.last = false, now, ""
}

// Reached notes an answer to a call that needs less than others do: it says
// nothing about what was advised, so it ends only an outage without advice.
func (l *Log) Reached(began time.Time) {
	l.mu.Lock()
	advised := l.last != ""
	l.mu.Unlock()
	if !advised {
		l.Answered(began)
	}
}
