// Package rabbit brings deliveries from RabbitMQ to whoever handles them, and
// their acknowledgements and dead letters back, through every loss of the
// connection.
package rabbit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/streadway/amqp"
)

const (
	dialTimeout  = 5 * time.Second  // of the TCP connection, of the handshake, of the set-up
	writeTimeout = 10 * time.Second // of one write to the socket
	// heartbeat is how often each side says that it is there. After three that
	// are missing the connection is given up.
	heartbeat = 5 * time.Second
)

// Server says where the broker is.
type Server struct {
	URLs []string    // tried in turn
	TLS  *tls.Config // for amqps
	// Goodbye bounds each farewell to a broker that may not answer any more.
	Goodbye time.Duration
}

// connection is an AMQP connection that can be ended whatever the library or
// the broker is waiting for.
type connection struct {
	*amqp.Connection
	addr    string
	next    int // the URL to try first when this one's broker turns out to be of no use
	raw     net.Conn
	goodbye time.Duration
}

// dial connects to the first URL that answers, counted from that one. What it
// returns for an error is a refusal only if every broker refused.
func (s Server) dial(ctx context.Context, name string, from int) (*connection, error) {
	var last error
	for i := range s.URLs {
		at := (from + i) % len(s.URLs)
		c, err := s.dialURL(ctx, s.URLs[at], name)
		if err == nil {
			c.next = (at + 1) % len(s.URLs)
			return c, nil
		}
		if last == nil || !refused(err) {
			last = err
		}
	}
	return nil, last
}

func (s Server) dialURL(ctx context.Context, url, name string) (*connection, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, errors.New("parse the broker's URL") // without the password that is in it
	}
	c := &connection{addr: net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), goodbye: s.Goodbye}
	aborted := func() bool { return false }
	cfg := amqp.Config{
		Heartbeat:  heartbeat,
		Locale:     "en_US",
		Properties: amqp.Table{"product": "gophercon2021", "connection_name": name},
		Dial: func(network, addr string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			c.raw = deadlineConn{conn}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			aborted = func() bool { return !stop() }
			// The library clears the deadline when the handshake is over.
			return c.raw, conn.SetDeadline(time.Now().Add(dialTimeout))
		},
	}
	if s.TLS != nil {
		cfg.TLSClientConfig = s.TLS.Clone() // the library writes the server's name into it
	}
	c.Connection, err = amqp.DialConfig(url, cfg)
	if aborted() {
		err = context.Cause(ctx)
	}
	if err != nil {
		if c.raw != nil {
			c.raw.Close()
		}
		return nil, fmt.Errorf("connect to the broker at %s as %q: %w%s", c.addr, uri.Username, err, advice(uri.Scheme, err))
	}
	return c, nil
}

// advice says what to look at when a connection fails for a reason that does
// not pass by itself.
func advice(scheme string, err error) string {
	switch text := err.Error(); {
	case scheme == "amqps" && (strings.Contains(text, "tls: ") || strings.Contains(text, "x509: ")):
		return ": check AMQP_CACERT, AMQP_CERT and AMQP_KEY, and the broker's certificate and its port in AMQP_URL"
	case scheme == "amqp" && strings.Contains(text, amqp.ErrFrame.Reason):
		return ": check the port in AMQP_URL, which must begin with amqps:// if that is the one for TLS"
	}
	return ""
}

// within calls f, which asks the broker something, and ends the connection
// under it if no answer comes, or ctx ends.
func (c *connection) within(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, errors.New("the broker did not answer in time"))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	err := f()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// close ends the connection, politely if that is quick.
func (c *connection) close() {
	force := time.AfterFunc(c.goodbye, func() { c.raw.Close() })
	defer force.Stop()
	c.Connection.Close() // what it says does not matter any more
}

// deadlineConn bounds every write: the library sets no deadline for them, and
// one that blocks would keep its locks for ever.
type deadlineConn struct{ net.Conn }

func (c deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// checkAccess is what to do about a refusal.
const checkAccess = "check the user, the password and the virtual host in AMQP_URL, and the user's permissions (rabbitmqctl list_permissions)"

// refused reports whether the broker has said no: to the user, or to the
// virtual host. A handshake that it breaks off because it goes down looks just
// the same, so one refusal proves nothing.
func refused(err error) bool {
	var e *amqp.Error
	return errors.As(err, &e) &&
		(e.Code == amqp.AccessRefused || e.Code == amqp.NotAllowed)
}
