package metrics

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cactus/go-statsd-client/v5/statsd"
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
	return Report(addr, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(t.Output(), nil)))
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

func TestNobodyListens(t *testing.T) {
	s := listen(t)
	s.Close()
	var log lines
	c := Report(s.LocalAddr().String(), "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
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

// useNameServer makes net connect to name servers with dial.
func useNameServer(t *testing.T, dial func(context.Context) (net.Conn, error)) {
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	t.Cleanup(func() { net.DefaultResolver = before })
}

// nameServer returns a connection to a name server that resolves every name to
// 127.0.0.host.
func nameServer(host byte) net.Conn {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		size := make([]byte, 2)
		if _, err := io.ReadFull(server, size); err != nil {
			return
		}
		m := make([]byte, binary.BigEndian.Uint16(size))
		if _, err := io.ReadFull(server, m); err != nil {
			return
		}
		const header = 12
		question := header + bytes.IndexByte(m[header:], 0) + len("\x00ttcc") // name, type, class
		isA := m[question-3] == 1
		answer := append([]byte{m[0], m[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, m[header:question]...)
		if isA {
			answer[7] = 1 // one answer: the name above, A, IN, 1 s, 4 bytes
			answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, host)
		}
		server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}()
	return client
}

// unresolvable is an address whose name cannot be resolved.
const unresolvable = "no-such-host.invalid:8125"

func TestUnresolvableName(t *testing.T) {
	var asked sync.Map // the times at which a name server was dialed
	useNameServer(t, func(context.Context) (net.Conn, error) {
		asked.Store(time.Now(), true)
		return nil, errors.New("no name server")
	})
	synctest.Test(t, func(t *testing.T) {
		var log lines
		c := Report(unresolvable, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
		begin := time.Now()
		for range 100_000 {
			c.Count("ignored")
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("counting took %v", took)
		}
		<-time.After(time.Hour)
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 1 ||
			!strings.Contains(log.String(), "statsd is unreachable") || !strings.Contains(log.String(), "STATSD_ADDR") {
			t.Errorf("in an hour %d lines are logged, want one:\n%s", n, log.String())
		}
		times := 0
		for range asked.Range {
			times++
		}
		if most := int(time.Hour/redial) + 1; times < 2 || times > most {
			t.Errorf("in an hour the name was looked up %d times, want 2 to %d", times, most)
		}
		begin = time.Now()
		c.Close()
		if took := time.Since(begin); took > 0 {
			t.Errorf("close took %v", took)
		}
	})
}

func TestNameServerHangs(t *testing.T) {
	hang := make(chan (<-chan struct{}), 1) // holds the channel that dials wait for; it is made in the bubble
	useNameServer(t, func(context.Context) (net.Conn, error) {
		end := <-hang
		hang <- end
		<-end
		return nil, errors.New("no name server")
	})
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		hang <- end
		c := report(t, unresolvable)
		<-time.After(time.Minute)
		begin := time.Now()
		for range 100_000 {
			c.Count("ignored")
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("counting took %v", took)
		}
		c.Close()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("close took %v", took)
		}
		close(end)
		<-c.done
	})
}

// Counts from before statsd's name can be resolved are sent later.
func TestNameIsResolvedLater(t *testing.T) {
	var known atomic.Bool
	useNameServer(t, func(context.Context) (net.Conn, error) {
		if known.Load() {
			return nameServer(1), nil
		}
		return nil, errors.New("no name server")
	})
	s := listen(t)
	synctest.Test(t, func(t *testing.T) {
		var log lines
		_, port, _ := net.SplitHostPort(s.addr())
		c := Report("statsd.invalid:"+port, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
		c.Count("ignored")
		<-time.After(time.Minute)
		known.Store(true)
		c.Count("ignored")
		<-time.After(redial + interval)
		synctest.Wait()
		c.Close()
		s.rest()
		s.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 2})
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "statsd is reachable again") {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// A statsd that comes back at another address is found there.
func TestNameMoves(t *testing.T) {
	var host atomic.Uint32
	host.Store(1)
	useNameServer(t, func(context.Context) (net.Conn, error) { return nameServer(byte(host.Load())), nil })
	here := listen(t)
	_, port, _ := net.SplitHostPort(here.addr())
	there := listenAt(t, "127.0.0.2:"+port)
	synctest.Test(t, func(t *testing.T) {
		c := report(t, "statsd.invalid:"+port)
		c.Count("ignored")
		<-time.After(2 * interval)
		synctest.Wait()
		host.Store(2)
		<-time.After(reresolve + resend)
		synctest.Wait()
		c.Count("ignored")
		c.Count("malformed")
		c.Close()
		here.rest()
		here.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 1})
		there.rest()
		there.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 1, "orders_ignored": 1})
	})
}

// statter is a statsd client whose calls can be made to fail.
type statter struct {
	statsd.Statter
	fails atomic.Bool

	mu     sync.Mutex
	totals map[string]int64
	calls  int
	closed bool
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

func (s *statter) Close() error {
	s.closed = true
	return nil
}

// reportTo is Report with another client.
func reportTo(s *statter) *Recorder {
	c := &Recorder{counts: make(map[string]*counter), client: s, quit: make(chan struct{}), done: make(chan struct{})}
	for _, name := range names {
		c.counts[name] = &counter{name: "orders_" + name}
	}
	go c.run()
	return c
}

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
		if _, totals := s.take(); totals["orders_ignored"] != 1 || !s.closed {
			t.Errorf("Close reports %v; closed: %v", totals, s.closed)
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
