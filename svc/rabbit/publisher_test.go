package rabbit

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/streadway/amqp"
)

// statusLog is a Status that keeps what it was told.
type statusLog []error

func (s *statusLog) Set(_ string, err error) { *s = append(*s, err) }

// An alarm is over when its connection is: the next one may be to another broker, and may
// be needed only much later.
func TestAlarmEndsWithTheConnection(t *testing.T) {
	var log strings.Builder
	var status statusLog
	d := newDeadLetters(&Consumer{Status: &status, Log: slog.New(slog.NewTextHandler(&log, nil))})
	blockings := make(chan amqp.Blocking, 1)
	blockings <- amqp.Blocking{Active: true, Reason: "low on disk"}
	close(blockings)
	d.listen(blockings)
	if len(status) != 2 || status[0] == nil || !strings.Contains(status[0].Error(), "low on disk") || status[1] != nil {
		t.Errorf("the status was told %v", status)
	}
	if !strings.Contains(log.String(), "reachable again") {
		t.Errorf("the log does not say that the alarm is over:\n%s", log.String())
	}
}

// The end of a blocked connection does not help a message that is being published. It
// waits for the next connection, so the log and the status still say that it waits.
func TestMessageWaitsBeyondItsConnection(t *testing.T) {
	var log strings.Builder
	var status statusLog
	d := newDeadLetters(&Consumer{Status: &status, Log: slog.New(slog.NewTextHandler(&log, nil))})
	d.turn <- struct{}{} // held by the message
	blockings := make(chan amqp.Blocking, 1)
	blockings <- amqp.Blocking{Active: true, Reason: "low on disk"}
	close(blockings)
	d.listen(blockings)
	if len(status) != 1 || status[0] == nil {
		t.Errorf("the status was told %v", status)
	}
	if strings.Contains(log.String(), "reachable again") {
		t.Errorf("the log says that the dead queue is reachable:\n%s", log.String())
	}
}
