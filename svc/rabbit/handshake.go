package rabbit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/streadway/amqp"
)

// handshakeConn reads along while the library logs in. The library returns
// "username or password not allowed" or "no access to this vhost" for every
// failure; the broker's own words are in its connection.close.
type handshakeConn struct {
	net.Conn

	// Used by the library's reader alone.
	unread   []byte // the beginning of a frame
	answered bool   // the broker has sent connection.start
	over     bool   // the handshake is

	reason atomic.Pointer[error] // why the handshake failed
}

// The methods of the handshake: class and method id.
const (
	methodStart  = 10<<16 | 10
	methodOpenOk = 10<<16 | 41
	methodClose  = 10<<16 | 50
)

// maxHandshake bounds in bytes what is kept of a frame: the handshake has
// frames of some 500 bytes.
const maxHandshake = 64 << 10

func (c *handshakeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.over {
		return n, err
	}
	c.unread = append(c.unread, b[:n]...)
	for !c.over {
		payload, rest, ok := cutFrame(c.unread)
		if !ok {
			break
		}
		c.unread = rest
		c.see(payload)
	}
	if err != nil {
		c.end(describeRead(err, c.answered))
	}
	if c.over = c.over || len(c.unread) > maxHandshake; c.over {
		c.unread = nil
	}
	return n, err
}

// see notes what one frame of the handshake means.
func (c *handshakeConn) see(payload []byte) {
	if len(payload) < 4 {
		return
	}
	switch binary.BigEndian.Uint32(payload) {
	case methodStart:
		c.answered = true
		c.SetDeadline(time.Now().Add(loginTimeout))
	case methodOpenOk:
		c.over = true
	case methodClose:
		if err := parseClose(payload[4:]); err != nil {
			c.end(err)
		}
	}
}

// end notes why the handshake failed.
func (c *handshakeConn) end(reason error) {
	c.reason.Store(&reason)
	c.over = true
}

// explain returns the reason of a failed handshake; err is the library's.
func (c *handshakeConn) explain(err error) error {
	if reason := c.reason.Load(); reason != nil {
		return *reason
	}
	if errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrVhost) {
		return errors.New("the login was broken off")
	}
	return err
}

// cutFrame cuts the payload of the first frame off b. It is not ok if b holds
// less than one frame.
func cutFrame(b []byte) (payload, rest []byte, ok bool) {
	const head, end = 7, 1 // type, channel, size; the end of the frame
	if len(b) < head {
		return nil, b, false
	}
	size := uint64(binary.BigEndian.Uint32(b[3:head]))
	if uint64(len(b)) < head+size+end {
		return nil, b, false
	}
	return b[head : head+size], b[head+size+end:], true
}

// parseClose reads the arguments of connection.close. It returns nil if they
// are incomplete.
func parseClose(args []byte) error {
	if len(args) < 3 || len(args) < 3+int(args[2]) {
		return nil
	}
	return &amqp.Error{Code: int(binary.BigEndian.Uint16(args)), Reason: string(args[3 : 3+int(args[2])]), Server: true}
}

var (
	errSlowLogin = fmt.Errorf("the broker did not finish the login within %v", loginTimeout)
	errNoReason  = errors.New("the broker closed the connection during the login and gave no reason")
)

// describeRead says what a failed read means during the handshake.
func describeRead(err error, answered bool) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && answered:
		return errSlowLogin
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the broker did not answer within %v", dialTimeout)
	case errors.Is(err, io.EOF):
		return errNoReason
	}
	return err
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
