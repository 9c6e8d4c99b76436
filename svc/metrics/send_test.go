package metrics

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cactus/go-statsd-client/v5/statsd"
	"github.com/google/go-cmp/cmp"
)

// Reports are sent a few times a second, however often counters are incremented.
func TestReportsRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &statter{totals: make(map[string]int64)}
		c := reportTo(s)
		if calls, _ := s.take(); calls != len(names) {
			t.Errorf("%d calls to prime %d counters", calls, len(names))
		}
		for range 20 {
			for range 1000 {
				c.Count("ignored")
			}
			<-time.After(interval)
		}
		calls, totals := s.take()
		if calls > 21+len(names) || totals["orders_ignored"] < 19_000 {
			t.Errorf("%d calls report %v", calls, totals)
		}
		<-time.After(time.Hour)
		if calls, _ := s.take(); calls > len(names)*int(time.Hour/resend+1) {
			t.Errorf("%d calls in an hour in which nothing is counted", calls)
		}
		c.Count("ignored")
		c.Close()
		if _, totals := s.take(); totals["orders_ignored"] != 1 {
			t.Errorf("Close reports %v", totals)
		}
	})
}

// Every counter is sent again and again, so that a statsd that starts later knows it
// without an event.
func TestSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &statter{totals: make(map[string]int64)}
		c := reportTo(s)
		defer c.Close()
		c.Count("ignored")
		for _, want := range []int64{1, 0, 0} {
			<-time.After(10*time.Second - interval)
			_, totals := s.take()
			if diff := cmp.Diff(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": want}, totals); diff != "" {
				t.Errorf("reported within 10 s (-want +got):\n%s", diff)
			}
		}
	})
}

// Counts that cannot be sent are sent later, and so is the first 0 of each counter.
func TestSendingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &statter{totals: make(map[string]int64)}
		s.fails.Store(true)
		c := reportTo(s)
		c.Count("ignored")
		<-time.After(time.Minute)
		synctest.Wait()
		s.fails.Store(false)
		c.Count("ignored")
		<-time.After(interval)
		_, totals := s.take()
		want := map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 2}
		if diff := cmp.Diff(want, totals); diff != "" {
			t.Errorf("statsd's totals (-want +got):\n%s", diff)
		}
		c.Close()
	})
}

// statter is a statsd client whose calls can be made to fail.
type statter struct {
	statsd.Statter
	fails atomic.Bool

	mu     sync.Mutex
	totals map[string]int64
	calls  int
}

// take returns the number of calls and the totals since its last call.
func (s *statter) take() (calls int, totals map[string]int64) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	calls, totals = s.calls, s.totals
	s.calls, s.totals = 0, make(map[string]int64)
	return calls, totals
}

func (s *statter) Inc(name string, value int64, rate float32, _ ...statsd.Tag) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.fails.Load() {
		return errors.New("network is unreachable")
	}
	if rate != 1 {
		return errors.New("not at rate 1")
	}
	s.totals[name] += value
	return nil
}

// reportTo returns a Recorder that reports to s.
func reportTo(s *statter) *Recorder {
	c := &Recorder{counts: make(map[string]*counter), quit: make(chan struct{}), done: make(chan struct{})}
	for _, name := range names {
		c.counts[name] = &counter{name: "orders_" + name}
	}
	go func() {
		defer close(c.done)
		c.report(s)
	}()
	return c
}
