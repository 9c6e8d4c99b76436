package metrics

import (
	"log/slog"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// lines reads packets until the named metric has arrived n times, and returns its
// values: the text after the colon.
func (s *sink) lines(name string, n int) (values []string) {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(30 * time.Second))
	packet := make([]byte, 64<<10)
	for len(values) < n {
		size, _, err := s.ReadFrom(packet)
		if err != nil {
			s.t.Fatalf("%s arrived %d times, want %d: %v", name, len(values), n, err)
		}
		for line := range strings.Lines(string(packet[:size])) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
				values = append(values, value)
			}
		}
	}
	return values
}

func reportAll(t *testing.T, s *sink) *Recorder {
	return Start(s.addr(), "orders_", Names{Counters: names, Timers: []string{"claim"}}, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// A few durations are all sent, without a sample rate.
func TestTimer(t *testing.T) {
	s := listen(t)
	m := reportAll(t, s)
	defer m.Close()
	m.Time("claim", 1500*time.Microsecond)
	if got := s.lines("orders_claim", 1)[0]; got != "1.5|ms" && !strings.HasPrefix(got, "1.500000|ms") {
		t.Errorf("1.5 ms are sent as %q", got)
	}
}

// If there are many durations, a fair sample of them is sent, with its rate.
func TestTimerSamples(t *testing.T) {
	s := listen(t)
	const n = 100_000
	m := reportAll(t, s)
	s.lines("orders_ignored", 1) // after the first report, all of the following times fit into few reports
	for i := range n {
		m.Time("claim", time.Duration(i)*time.Millisecond)
	}
	sent, stands, late := 0, 0.0, 0
	for stands < n*0.99 { // a rate has six digits
		value := s.lines("orders_claim", 1)[0]
		ms, rest, _ := strings.Cut(value, "|ms")
		took, err := strconv.ParseFloat(ms, 64)
		if err != nil {
			t.Fatalf("%q is not a time", value)
		}
		rate := 1.0
		if text, sampled := strings.CutPrefix(rest, "|@"); sampled {
			if rate, err = strconv.ParseFloat(text, 64); err != nil || rate <= 0 || rate > 1 {
				t.Fatalf("%q has no rate", value)
			}
		}
		sent++
		stands += 1 / rate
		if took >= samples {
			late++
		}
	}
	if math.Abs(stands-n) > n/100 {
		t.Errorf("%d times stand for %.0f, want %d", sent, stands, n)
	}
	if sent > 20*samples || late < sent/2 {
		t.Errorf("%d of %d times were sent, %d of them not among the first", sent, n, late)
	}
	m.Close()
}
