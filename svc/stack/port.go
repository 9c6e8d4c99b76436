package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Port is a TCP port of 127.0.0.1 that stays reserved for a server, also while the
// server is down.
//
// A port that the kernel chose for port 0 would not do: while the server is down, the
// kernel may give the port to another process, or use it for an outgoing connection.
// So ports come from below the range from which the kernel chooses (32768 on Linux,
// 49152 on macOS), and the owner of a port holds the UDP port of the same number.
// Nothing is sent there. The UDP port is a lock that all programs with this package
// respect, and the kernel releases it however its holder dies.
type Port struct {
	number int
	lock   net.PacketConn
}

const (
	lowestPort  = 20000
	highestPort = 32767
)

// ReservePort returns a free port. It belongs to the caller until Close.
func ReservePort() (Port, error) {
	err := errors.New("no free port")
	for range 100 {
		number := lowestPort + rand.IntN(highestPort-lowestPort+1)
		p := Port{number: number}
		if p.lock, err = net.ListenPacket("udp4", p.Addr()); err != nil {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp4", p.Addr()); err != nil {
			p.lock.Close()
			continue
		}
		l.Close()
		return p, nil
	}
	return Port{}, fmt.Errorf("reserve a port between %d and %d: %w", lowestPort, highestPort, err)
}

// reserve reserves ports for the server until the server is closed.
func (s *Server) reserve(ports ...*Port) (err error) {
	for _, p := range ports {
		if *p, err = ReservePort(); err != nil {
			return err
		}
		s.owned = append(s.owned, p)
	}
	return nil
}

// Addr returns the address of the port: host and port.
func (p Port) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.number) }

// Close releases the port.
func (p Port) Close() error { return p.lock.Close() }
