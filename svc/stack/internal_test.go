package stack

import (
	"errors"
	"net"
	"testing"
)

func TestNoRabbit(t *testing.T) {
	if _, err := findTools([]string{t.TempDir()}); !errors.Is(err, ErrNoRabbit) {
		t.Errorf("the error is %v", err)
	}
}

// A reserved port is free for a server, and cannot be reserved again until it is closed.
func TestReservedPort(t *testing.T) {
	p, err := ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := net.Listen("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if lock, err := net.ListenPacket("udp4", p.Addr()); err == nil {
			lock.Close()
			t.Error("reserved twice")
		}
	}
	p.Close()
	lock, err := net.ListenPacket("udp4", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}
