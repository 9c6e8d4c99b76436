package rabbit

import (
	"context"
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
	p := newPublisher(Config{Status: &status, Log: slog.New(slog.NewTextHandler(&log, nil))})
	alarms := make(chan amqp.Blocking, 1)
	alarms <- amqp.Blocking{Active: true, Reason: "low on disk"}
	close(alarms)
	if l := p.next(t.Context(), alarms); l != nil {
		t.Errorf("there is a letter: %v", l)
	}
	if len(status) != 3 || status[1] == nil || !strings.Contains(status[1].Error(), "low on disk") || status[2] != nil {
		t.Errorf("the status was told %v", status)
	}
	if !strings.Contains(log.String(), "can be published again") {
		t.Errorf("the log does not say that the alarm is over:\n%s", log.String())
	}
}

// When a delivery has gone, its letter is not published any more, and does not count as
// refused.
func TestLetterOfADeliveryThatHasGone(t *testing.T) {
	var status statusLog
	p := newPublisher(Config{Status: &status})
	delivery, gone := context.WithCancel(t.Context())
	ctx, stop := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- p.publish(delivery, "dead", amqp.Publishing{}) }()
	l := p.next(ctx, nil)
	p.Log = slog.New(slog.DiscardHandler)
	p.refuse(l, refusal{errNacked})
	ended := make(chan *letter)
	go func() { ended <- p.next(ctx, nil) }()
	gone()
	if err := <-failed; err != context.Canceled {
		t.Errorf("publish returns %v", err)
	}
	stop()
	if l := <-ended; l != nil || len(p.waiting) > 0 {
		t.Errorf("the letter is published again: %v", l)
	}
	if last := status[len(status)-1]; last != nil {
		t.Errorf("the status is %v", last)
	}
}
