package metrics

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cactus/go-statsd-client/v5/statsd"
	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	net.LookupHost("localhost") // net makes a channel once, which must not be in a bubble
	goleak.VerifyTestMain(m)
}

var names = []string{"new_order_ok", "malformed", "ignored"}

// sums returns sums of the counters by statsd's names.
func sums(ok, malformed, ignored int64) map[string]int64 {
	return map[string]int64{"orders_new_order_ok": ok, "orders_malformed": malformed, "orders_ignored": ignored}
}

// wait waits until a sink has these counts.
func wait(t *testing.T, sink *stack.Statsd, want map[string]int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := sink.Wait(ctx, func(counts map[string]int64) bool { return maps.Equal(counts, want) }); err != nil {
		t.Fatalf("%v; %s has %v, want %v", err, sink.Addr(), sink.Counts(), want)
	}
}

// The counters are sent with 0 at the start, then what is counted, and at the end what was
// counted by the time of Close.
func TestCounters(t *testing.T) {
	sink, err := stack.StartStatsd()
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	c := Start(sink.Addr(), "orders_", Names{Counters: names, Timers: []string{"claim"}}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	wait(t, sink, sums(0, 0, 0))
	var counting sync.WaitGroup
	for range 8 {
		counting.Go(func() {
			for range 1000 {
				c.Count("new_order_ok")
			}
			c.Count("malformed")
		})
	}
	counting.Wait()
	wait(t, sink, sums(8000, 8, 0))
	c.Count("ignored")
	c.Time("claim", 1500*time.Microsecond)
	c.Close()
	c.Count("ignored") // as by a handler that ends later
	wait(t, sink, sums(8000, 8, 1))
	if ms, ok := sink.Last("orders_claim"); ms != 1.5 || !ok {
		t.Errorf("1.5 ms are sent as %v", ms)
	}
	if diff := cmp.Diff(sums(8000, 8, 2), c.Totals()); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}

// Reports are sent a few times a second, however often counters are incremented, and
// repeated every few seconds for a statsd that starts later.
func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &statter{totals: make(map[string]int64)}
		c := &Recorder{counts: make(map[string]*counter), quit: make(chan struct{}), done: make(chan struct{})}
		for _, name := range names {
			c.counts[name] = &counter{name: "orders_" + name}
		}
		go func() {
			defer close(c.done)
			c.report(s)
		}()
		for range 20 {
			for range 1000 {
				c.Count("ignored")
			}
			<-time.After(interval)
		}
		calls, totals := s.take()
		if calls > 21+2*len(names) || totals["orders_ignored"] < 19_000 {
			t.Errorf("%d calls report %v", calls, totals)
		}
		for range 3 {
			<-time.After(10*time.Second - interval)
			calls, totals := s.take()
			delete(totals, "orders_ignored")
			if want := sums(0, 0, 0); calls > 3*len(names) || len(totals) != len(want)-1 {
				t.Errorf("in 10 s without events %d calls report %v", calls, totals)
			}
		}

		// Counts that cannot be sent are sent later.
		s.fails.Store(true)
		c.Count("ignored")
		<-time.After(time.Minute)
		s.take()
		s.fails.Store(false)
		c.Count("ignored")
		<-time.After(interval)
		if _, totals := s.take(); !maps.Equal(totals, sums(0, 0, 2)) {
			t.Errorf("statsd gets %v later", totals)
		}
		c.Count("malformed")
		c.Close()
		if _, totals := s.take(); totals["orders_malformed"] != 1 {
			t.Errorf("Close reports %v", totals)
		}
	})
}

// A few times are all sent; of many a fair sample is, with its rate.
func TestTimer(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 1, samples: samples, samples + 1: samples, 100_000: samples} {
		tm, s := &timer{name: "orders_claim"}, &statter{}
		for i := range n {
			tm.add(time.Duration(i) * time.Millisecond)
		}
		tm.flush(s)
		stands, late := 0.0, 0
		for _, sent := range s.times {
			stands += 1 / float64(sent.rate)
			if sent.took >= samples*time.Millisecond {
				late++
			}
		}
		if len(s.times) != want || int(stands+0.5) != n || n == 100_000 && late < want/2 {
			t.Errorf("%d times: %d are sent, stand for %v, %d are not among the first", n, len(s.times), stands, late)
		}
		if tm.flush(s); len(s.times) != want {
			t.Error("the times are sent twice")
		}
		for i, sent := range s.times {
			if n == samples && sent != (sample{time.Duration(i) * time.Millisecond, 1}) {
				t.Errorf("time %d is sent as %v", i, sent)
			}
		}
	}
}

// A name that cannot be resolved, because no name server answers, costs the service
// nothing, and is logged once.
func TestUnresolvableName(t *testing.T) {
	for name, hangs := range map[string]bool{"no name server": false, "the name server hangs": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				hanging := make(chan struct{})
				useNameServer(t, func() (net.Conn, error) {
					if asked.Add(1); hangs {
						<-hanging
					}
					return nil, errors.New("no name server")
				})
				const msg, hint = `level=WARN msg="statsd is unreachable: counts are kept until it is found"`, `hint="check STATSD_ADDR"`
				var log bytes.Buffer
				c := Start("statsd.invalid:8125", "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
				began := time.Now()
				for range 1000 {
					c.Count("ignored")
				}
				if took := time.Since(began); took > 0 {
					t.Errorf("counting took %v", took)
				}
				<-time.After(time.Hour)
				synctest.Wait()
				if n := strings.Count(log.String(), "\n"); !hangs && (n != 1 || !strings.Contains(log.String(), msg) || !strings.Contains(log.String(), hint)) {
					t.Errorf("in an hour %d lines are logged, want one:\n%s", n, log.String())
				}
				if most := 10 * (int64(time.Hour/redial) + 1); asked.Load() > most {
					t.Errorf("in an hour a name server was asked %d times, want at most %d", asked.Load(), most)
				}
				began = time.Now()
				c.Close()
				if took := time.Since(began); took > maxCloseWait || took > 0 && !hangs {
					t.Errorf("close took %v", took)
				}
				close(hanging)
				<-c.done
			})
		})
	}
}

// Counts from before the name can be resolved are sent later. A statsd that moves to
// another address is found there.
func TestNameMoves(t *testing.T) {
	var host atomic.Uint32
	useNameServer(t, func() (net.Conn, error) {
		if host.Load() == 0 {
			return nil, errors.New("no name server")
		}
		return &nameServer{host: byte(host.Load())}, nil
	})
	first, err := stack.StartStatsd()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, port, _ := net.SplitHostPort(first.Addr())
	second, err := stack.StartStatsdAt("127.0.0.2:" + port)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		c := Start("statsd.invalid:"+port, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
		c.Count("malformed")
		<-time.After(time.Minute)
		host.Store(1)
		<-time.After(redial + 2*interval)
		host.Store(2)
		<-time.After(reresolve + resend)
		c.Count("ignored")
		c.Close()
	})
	wait(t, first, sums(0, 1, 0))
	wait(t, second, sums(0, 0, 1))
	if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "statsd is reachable again") {
		t.Errorf("log:\n%s", log.String())
	}
}

// useNameServer makes net connect to name servers with dial.
func useNameServer(t *testing.T, dial func() (net.Conn, error)) {
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return dial() }}
	t.Cleanup(func() { net.DefaultResolver = before })
}

// nameServer is a connection to a name server that resolves every name to 127.0.0.host.
type nameServer struct {
	net.Conn
	answer bytes.Buffer
	host   byte
}

// Write takes a question, behind two bytes with its size.
func (s *nameServer) Write(q []byte) (int, error) {
	const header = 2 + 12
	end := header + bytes.IndexByte(q[header:], 0) + len("\x00ttcc") // name, type, class
	m := append([]byte{q[2], q[3], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}, q[header:end]...)
	m = append(m, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, s.host) // the name above, A, IN, 1 s, 4 bytes
	s.answer.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return len(q), nil
}

func (s *nameServer) Read(b []byte) (int, error)  { return s.answer.Read(b) }
func (s *nameServer) SetDeadline(time.Time) error { return nil }
func (s *nameServer) Close() error                { return nil }

// statter is a statsd client whose calls can be made to fail.
type statter struct {
	statsd.Statter
	fails atomic.Bool
	times []sample

	mu     sync.Mutex
	totals map[string]int64
	calls  int
}

type sample struct {
	took time.Duration
	rate float32
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
	if s.calls++; s.fails.Load() || rate != 1 {
		return errors.New("network is unreachable, or not at rate 1")
	}
	s.totals[name] += value
	return nil
}

func (s *statter) TimingDuration(_ string, took time.Duration, rate float32, _ ...statsd.Tag) error {
	s.times = append(s.times, sample{took, rate})
	return nil
}
