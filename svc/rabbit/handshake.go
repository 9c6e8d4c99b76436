package rabbit

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/streadway/amqp"
)

// brokerConn keeps what the broker sends while the library logs in. The library
// returns "username or password not allowed" or "no access to this vhost" for every
// failure; the broker's own words are in its connection.close. brokerConn also bounds
// each write: the library sets no deadline, and a write that blocks would keep the
// library's locks for ever.
type brokerConn struct {
	net.Conn
	writeTimeout time.Duration // 0: none

	mu       sync.Mutex
	received []byte // the beginning of the connection, up to maxHandshake
	err      error  // of the last read there
}

// maxHandshake bounds in bytes what is kept. A handshake has three frames of at
// most 4 KiB.
const maxHandshake = 16 << 10

func (c *brokerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && len(c.received) == 0 { // the broker has answered
		c.SetDeadline(time.Now().Add(loginTimeout))
	}
	if space := maxHandshake - len(c.received); space > 0 {
		c.received, c.err = append(c.received, b[:min(n, space)]...), err
	}
	return n, err
}

func (c *brokerConn) Write(b []byte) (int, error) {
	if c.writeTimeout > 0 {
		c.SetWriteDeadline(time.Now().Add(c.writeTimeout)) // fails only if the write does, too
	}
	return c.Conn.Write(b)
}

// The methods that end a handshake: class and method id. Nothing else in it
// contains these bytes.
var (
	methodOpenOk = []byte{0, 10, 0, 41}
	methodClose  = []byte{0, 10, 0, 50}
)

var (
	errSlowLogin = fmt.Errorf("the broker did not finish the login within %v", loginTimeout)
	errNoAnswer  = fmt.Errorf("the broker did not answer within %v", dialTimeout)
	errNoReason  = errors.New("the broker closed the connection during the login and gave no reason")
)

// explain returns the reason of a failed handshake; err is the library's.
func (c *brokerConn) explain(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Contains(c.received, methodOpenOk) { // the login had succeeded
		return err
	}
	if _, args, found := bytes.Cut(c.received, methodClose); found {
		if reason := parseClose(args); reason != nil {
			return reason
		}
	}
	switch cause := cmp.Or(c.err, err); {
	case errors.Is(cause, os.ErrDeadlineExceeded) && len(c.received) > 0:
		return errSlowLogin
	case errors.Is(cause, os.ErrDeadlineExceeded):
		return errNoAnswer
	case errors.Is(cause, io.EOF), errors.Is(cause, syscall.ECONNRESET):
		return errNoReason
	case errors.Is(cause, amqp.ErrCredentials), errors.Is(cause, amqp.ErrVhost):
		return errors.New("the login was broken off")
	default:
		return cause
	}
}

// parseClose reads the arguments of connection.close. It returns nil if they
// are incomplete.
func parseClose(args []byte) error {
	if len(args) < 3 || len(args) < 3+int(args[2]) {
		return nil
	}
	return &amqp.Error{Code: int(binary.BigEndian.Uint16(args)), Reason: string(args[3 : 3+int(args[2])]), Server: true}
}

// plainAuth is PLAIN authentication that asks the broker to say why it refuses
// a login, instead of closing the socket. The library fills in the capabilities
// of properties just before it asks for the response.
type plainAuth struct {
	*amqp.PlainAuth
	properties amqp.Table
}

// Response implements amqp.Authentication.
func (a plainAuth) Response() string {
	if capabilities, ok := a.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return a.PlainAuth.Response()
}
