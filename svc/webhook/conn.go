package webhook

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
)

// countedConn counts the bytes that are written to a connection: net/http calls
// a request written when it is in its buffer.
type countedConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

func counted(dial dialer) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &countedConn{Conn: conn}, nil
	}
}

// unwrap returns what is below TLS.
func unwrap(conn net.Conn) *countedConn {
	for {
		over, ok := conn.(*tls.Conn)
		if !ok {
			return conn.(*countedConn)
		}
		conn = over.NetConn()
	}
}
