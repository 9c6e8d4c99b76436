package stack

import (
	"errors"
	"io"
	"testing"
)

func TestNoRabbit(t *testing.T) {
	if _, err := findTools([]string{t.TempDir()}); !errors.Is(err, ErrNoRabbit) {
		t.Errorf("the error is %v", err)
	}
}

// A reserved port is free for a server, and cannot be reserved again until it is closed.
func TestReservedPort(t *testing.T) {
	tests := map[string]struct {
		reserve      func() (Port, error)
		listen, lock func(addr string) (io.Closer, error)
	}{
		"TCP": {ReservePort, listenTCP, listenUDP},
		"UDP": {ReserveUDPPort, listenUDP, listenTCP},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := tt.reserve()
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := Relisten(bind(tt.listen, p.Addr())); err != nil {
					t.Fatal(err)
				}
				if lock, err := tt.lock(p.Addr()); err == nil {
					lock.Close()
					t.Error("reserved twice")
				}
			}
			p.Close()
			if err := Relisten(bind(tt.lock, p.Addr())); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bind returns a function that listens at an address and closes the socket at once.
func bind(listen func(addr string) (io.Closer, error), addr string) func() error {
	return func() error {
		l, err := listen(addr)
		if err != nil {
			return err
		}
		return l.Close()
	}
}
