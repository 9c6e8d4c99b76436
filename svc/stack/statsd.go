package stack

import (
	"context"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Statsd receives what is sent to a statsd, and adds it up.
type Statsd struct {
	conn net.PacketConn
	done chan struct{}

	mu      sync.Mutex
	counts  map[string]int64
	changed chan struct{} // closed with the next change
}

// StartStatsd listens on a free UDP port of the loopback interface.
func StartStatsd() (*Statsd, error) { return StartStatsdAt("127.0.0.1:0") }

// StartStatsdAt listens on that address.
func StartStatsdAt(addr string) (*Statsd, error) {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	conn.(*net.UDPConn).SetReadBuffer(4 << 20) // as much as the system allows
	s := &Statsd{conn: conn, done: make(chan struct{}), counts: make(map[string]int64), changed: make(chan struct{})}
	go s.listen()
	return s, nil
}

// Addr is host:port.
func (s *Statsd) Addr() string { return s.conn.LocalAddr().String() }

// Close stops listening.
func (s *Statsd) Close() error {
	err := s.conn.Close()
	<-s.done
	return err
}

func (s *Statsd) listen() {
	defer close(s.done)
	packet := make([]byte, 64<<10)
	for {
		n, _, err := s.conn.ReadFrom(packet)
		if err != nil {
			return
		}
		s.mu.Lock()
		for line := range strings.Lines(string(packet[:n])) {
			s.add(strings.TrimSpace(line))
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}

// add takes one metric: name:value|type. Counters add up, others replace.
func (s *Statsd) add(line string) {
	name, rest, _ := strings.Cut(line, ":")
	value, kind, ok := strings.Cut(rest, "|")
	n, err := strconv.ParseFloat(value, 64)
	if !ok || err != nil {
		return
	}
	if strings.HasPrefix(kind, "c") {
		s.counts[name] += int64(n)
	} else {
		s.counts[name] = int64(n)
	}
}

// Counts returns all sums by name.
func (s *Statsd) Counts() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Wait waits until ok is true of the sums.
func (s *Statsd) Wait(ctx context.Context, ok func(map[string]int64) bool) error {
	for {
		s.mu.Lock()
		good, changed := ok(s.counts), s.changed
		s.mu.Unlock()
		if good {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
