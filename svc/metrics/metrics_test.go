package metrics

import (
	"bytes"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a statsd server that sums up counters.
type sink struct {
	net.PacketConn
	t       *testing.T
	totals  map[string]int64
	packets int
}

func listen(t *testing.T) *sink {
	t.Helper()
	return listenAt(t, "127.0.0.1:0")
}

func listenAt(t *testing.T, addr string) *sink {
	t.Helper()
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &sink{PacketConn: conn, t: t, totals: make(map[string]int64)}
}

// addr returns the sink's address, with the name localhost as the host.
func (s *sink) addr() string {
	_, port, _ := net.SplitHostPort(s.LocalAddr().String())
	return net.JoinHostPort("localhost", port)
}

// read reads one packet, and reports whether it is the one that rest sends last.
func (s *sink) read() (last bool) {
	s.t.Helper()
	packet := make([]byte, 64<<10)
	n, _, err := s.ReadFrom(packet)
	if err != nil {
		s.t.Fatalf("no packet after %v: %v", s.totals, err)
	}
	if string(packet[:n]) == "last" {
		return true
	}
	if n > 1432 {
		s.t.Errorf("a packet of %d bytes", n)
	}
	s.packets++
	for line := range strings.Lines(string(packet[:n])) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		count, isCounter := strings.CutSuffix(value, "|c")
		v, err := strconv.ParseInt(count, 10, 64)
		if !isCounter || err != nil {
			s.t.Fatalf("%q is not a count at rate 1", line)
		}
		s.totals[name] += v
	}
	return false
}

// until reads packets until the totals are as wanted.
func (s *sink) until(want map[string]int64) {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(30 * time.Second))
	for !maps.Equal(s.totals, want) {
		s.read()
	}
}

// rest reads all packets that were sent before its call.
func (s *sink) rest() {
	s.t.Helper()
	if _, err := s.WriteTo([]byte("last"), s.LocalAddr()); err != nil {
		s.t.Fatal(err)
	}
	for !s.read() {
	}
}

func (s *sink) expect(want map[string]int64) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.totals); diff != "" {
		s.t.Errorf("statsd's totals (-want +got):\n%s", diff)
	}
}

var names = []string{"new_order_ok", "malformed", "ignored"}

func report(t *testing.T, addr string) *Recorder {
	return Start(addr, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func TestCountsAddUp(t *testing.T) {
	s := listen(t)
	c := report(t, s.addr())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.Count("new_order_ok")
			}
			c.Count("malformed")
		})
	}
	wg.Wait()
	want := map[string]int64{"orders_new_order_ok": 8000, "orders_malformed": 8, "orders_ignored": 0}
	s.until(want) // before Close
	c.Close()
	s.rest()
	s.expect(want)
}

// The counters are sent with 0 at the start, and what was counted by the time of Close.
func TestCloseFlushes(t *testing.T) {
	s := listen(t)
	c := report(t, s.addr())
	s.until(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 0})
	for range 7 {
		c.Count("ignored")
	}
	c.Close()
	s.rest()
	s.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 7})
	c.Count("ignored") // as by a handler that ends later
}

func TestNoServerListens(t *testing.T) {
	s := listen(t)
	s.Close()
	var log lines
	c := Start(s.LocalAddr().String(), "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
	for range 100_000 {
		c.Count("ignored")
	}
	c.Close()
	if log.String() != "" {
		t.Error(log.String())
	}
}

func TestUnknownNamePanics(t *testing.T) {
	c := report(t, listen(t).addr())
	defer c.Close()
	defer func() {
		if recover() == nil {
			t.Error("counting an unknown name does not panic")
		}
	}()
	c.Count("new_order_okay")
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
