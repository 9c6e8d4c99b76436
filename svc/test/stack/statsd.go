package stack

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Statsd is a UDP sink for statsd metrics that keeps the sums of counters that are not sampled.
type Statsd struct {
	conn *net.UDPConn
	gone chan struct{} // closed when receive has returned

	mu      sync.Mutex
	counts  map[string]int64
	last    map[string]float64
	changed chan struct{} // closed and replaced at every packet
}

// receiveBuffer is the size of the receive buffer in bytes, large enough that a burst is
// not lost on a busy machine. Linux grants 208 KiB unless net.core.rmem_max allows more.
const receiveBuffer = 4 << 20

// StartStatsd starts a sink on a free port of 127.0.0.1.
func StartStatsd() (*Statsd, error) { return StartStatsdAt("127.0.0.1:0") }

// StartStatsdAt starts a sink at an address, where another sink may have been closed just
// before.
func StartStatsdAt(addr string) (*Statsd, error) {
	udp, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("start statsd: %w", err)
	}
	var conn *net.UDPConn
	err = Relisten(func() (err error) {
		conn, err = net.ListenUDP("udp", udp)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start statsd: %w", err)
	}
	conn.SetReadBuffer(receiveBuffer) // a smaller buffer suffices for most tests
	s := &Statsd{
		conn: conn, gone: make(chan struct{}),
		counts: map[string]int64{}, last: map[string]float64{}, changed: make(chan struct{}),
	}
	go s.receive()
	return s, nil
}

func (s *Statsd) receive() {
	defer close(s.gone)
	packet := make([]byte, 1<<16)
	for {
		n, err := s.conn.Read(packet)
		if err != nil {
			return // the connection was closed
		}
		s.add(string(packet[:n]))
	}
}

func (s *Statsd) add(packet string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(packet) { // name:value|kind, and perhaps |@rate
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		value, kind, _ := strings.Cut(rest, "|")
		if n, err := strconv.ParseFloat(value, 64); err != nil {
			continue
		} else if kind == "c" {
			s.counts[name] += int64(n)
		} else {
			s.last[name] = n
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Addr returns the address of the sink: host and port.
func (s *Statsd) Addr() string { return s.conn.LocalAddr().String() }

// Count returns the sum of a counter.
func (s *Statsd) Count(name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[name]
}

// Counts returns the sums of all counters that were received, including those that
// are 0.
func (s *Statsd) Counts() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Last returns the last value of a gauge or a timer. ok is false if there is none.
func (s *Statsd) Last(name string) (value float64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok = s.last[name]
	return value, ok
}

// Wait waits until wanted returns true for the sums. wanted must not keep the map.
func (s *Statsd) Wait(ctx context.Context, wanted func(counts map[string]int64) bool) error {
	for {
		s.mu.Lock()
		ok, changed := wanted(s.counts), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for counters: %w", ctx.Err())
		}
	}
}

// Close stops receiving. A second call does nothing.
func (s *Statsd) Close() error {
	s.conn.Close()
	<-s.gone
	return nil
}
