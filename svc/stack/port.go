package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Port is a TCP port of 127.0.0.1 that a server can have, and can have again
// after it was down.
//
// Taking what the kernel offers for port 0 does not do: while the server is
// down, the kernel may offer the port to someone else, or use it for an outgoing
// connection. So ports come from below the range the kernel takes from (32768 on
// Linux, 49152 on macOS), and the user of one holds the UDP port of that number.
// Nothing is sent there: it is a lock that all programs of the machine respect
// that use this package, and that ends with its holder, however that dies.
type Port struct {
	number int
	lock   net.PacketConn
}

const (
	lowestPort  = 20000
	highestPort = 32767
)

// ReservePort returns a port that is free, and the caller's until it is closed.
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

// reserve fills in ports that are the server's until it is closed.
func (s *Server) reserve(ports ...*Port) (err error) {
	for _, p := range ports {
		if *p, err = ReservePort(); err != nil {
			return err
		}
		s.owned = append(s.owned, p)
	}
	return nil
}

// Addr is the address of the port, host and port.
func (p Port) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.number) }

// Close gives the port free.
func (p Port) Close() error { return p.lock.Close() }
