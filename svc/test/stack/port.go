package stack

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

// Port is a port of 127.0.0.1, of TCP or UDP, that stays reserved for a server, also while
// the server is down.
//
// A port that the kernel chose for port 0 would not do: while the server is down, the
// kernel may give the port to another process, or use it for an outgoing connection.
// So ports come from below the range from which the kernel chooses (32768 on Linux,
// 49152 on macOS), and the owner of a TCP port holds the UDP port of the same number, the
// owner of a UDP port that of TCP. Nothing is sent there. The other port is a lock that
// all programs with this package respect, and the kernel releases it however its holder
// dies.
type Port struct {
	number int
	lock   io.Closer
}

// TCP and UDP ports have ranges of their own: to try a port, ReservePort opens both ports of
// its number for a moment, and must not take one at which a server is about to listen.
const (
	lowestPort    = 20000
	lowestUDPPort = 30000
	highestPort   = 32767
)

// ReservePort returns a free TCP port. It belongs to the caller until Close.
func ReservePort() (Port, error) {
	return reservePort(lowestPort, lowestUDPPort-1, listenUDP, listenTCP)
}

// ReserveUDPPort returns a free UDP port. It belongs to the caller until Close.
func ReserveUDPPort() (Port, error) {
	return reservePort(lowestUDPPort, highestPort, listenTCP, listenUDP)
}

func listenTCP(addr string) (io.Closer, error) { return net.Listen("tcp4", addr) }
func listenUDP(addr string) (io.Closer, error) { return net.ListenPacket("udp4", addr) }

func reservePort(lowest, highest int, lock, listen func(addr string) (io.Closer, error)) (Port, error) {
	err := errors.New("no free port")
	for range 100 {
		p := Port{number: lowest + rand.IntN(highest-lowest+1)}
		if p.lock, err = lock(p.Addr()); err != nil {
			continue
		}
		var free io.Closer
		if free, err = listen(p.Addr()); err != nil {
			p.lock.Close()
			continue
		}
		free.Close()
		return p, nil
	}
	return Port{}, fmt.Errorf("reserve a port between %d and %d: %w", lowest, highest, err)
}

// Relisten calls listen for a port whose socket was just closed, for up to 10 s while the
// port is in use: a process that is being started holds a copy of the socket until it
// executes its program.
func Relisten(listen func() error) (err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if err = listen(); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return err
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
