// Package rabbit brings deliveries from RabbitMQ to their handlers, and
// acknowledgements and dead letters back, through every loss of the connection.
package rabbit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/streadway/amqp"
)

const (
	// dialTimeout bounds the TCP connection, then the TLS handshake with the
	// broker's first answer, then the set-up of a channel.
	dialTimeout = 5 * time.Second
	// loginTimeout bounds the login to a broker that has answered. RabbitMQ
	// itself gives up after 10 s (handshake_timeout).
	loginTimeout = 15 * time.Second
	// defaultHeartbeat is how often each side sends a frame at least. After
	// three missing ones the connection is given up.
	defaultHeartbeat = 5 * time.Second
)

// Server says where the broker is.
type Server struct {
	// URLs are tried in turn. The query parameter heartbeat, in seconds,
	// replaces the default of 5 s.
	URLs []string
	TLS  *tls.Config // for amqps
	// CloseTimeout bounds the closing of a connection to a broker that may not
	// answer any more.
	CloseTimeout time.Duration
}

// connection is an AMQP connection that can be ended whatever the library or
// the broker is waiting for.
type connection struct {
	*amqp.Connection
	addr         string // host:port
	broker       string // for logs: the address and the virtual host
	raw          net.Conn
	closeTimeout time.Duration
	watchers     sync.WaitGroup // goroutines that end with the connection

	// Owned by the goroutine that declares:
	declaring  *amqp.Channel // nil: none
	mayNotBind bool          // the broker has said so

	// Set by the function that serve calls:
	next   int  // the URL to try first after this connection; the one behind its own, if not set
	served bool // it did what it was opened for
}

// dial connects to the first URL that answers, beginning with number from. It
// returns an error of denied access only if every broker denied it.
func (s Server) dial(ctx context.Context, name string, writeTimeout time.Duration, from int) (*connection, error) {
	var last error
	for i := range s.URLs {
		at := (from + i) % len(s.URLs)
		c, err := s.dialURL(ctx, s.URLs[at], name, writeTimeout)
		if err == nil {
			c.next = (at + 1) % len(s.URLs)
			return c, nil
		}
		if last == nil || !denied(err) {
			last = err
		}
	}
	return nil, last
}

func (s Server) dialURL(ctx context.Context, rawURL, name string, writeTimeout time.Duration) (*connection, error) {
	uri, err := amqp.ParseURI(rawURL)
	if err != nil {
		return nil, errors.New("parse the broker's URL") // without the password that is in it
	}
	addr := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	c := &connection{addr: addr, broker: fmt.Sprintf("%s, virtual host %q", addr, uri.Vhost), closeTimeout: s.CloseTimeout}
	dialer := net.Dialer{Timeout: dialTimeout}
	if c.raw, err = dialer.DialContext(ctx, "tcp", addr); err == nil {
		heartbeat := defaultHeartbeat
		if u, _ := url.Parse(rawURL); u.Query().Has("heartbeat") {
			heartbeat, _ = time.ParseDuration(u.Query().Get("heartbeat") + "s")
		}
		err = c.within(ctx, dialTimeout+loginTimeout, func() error { return c.login(s.TLS, uri, heartbeat, name, writeTimeout) })
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the broker at %s as %q: %w", c.broker, uri.Username, err)
	}
	return c, nil
}

// login performs AMQP's handshake. With TLS, the first write performs that of TLS.
func (c *connection) login(tlsConfig *tls.Config, uri amqp.URI, heartbeat time.Duration, name string, writeTimeout time.Duration) error {
	// This fails only on a closed connection, on which the handshake fails, too. The
	// library clears the deadline when the handshake is over.
	c.raw.SetDeadline(time.Now().Add(dialTimeout))
	conn := c.raw
	if uri.Scheme == "amqps" {
		cfg := cmp.Or(tlsConfig, &tls.Config{}).Clone()
		cfg.ServerName = cmp.Or(cfg.ServerName, uri.Host)
		conn = tls.Client(conn, cfg)
	}
	socket := &brokerConn{Conn: conn, writeTimeout: writeTimeout}
	properties := amqp.Table{"product": "gophercon2021", "connection_name": name}
	var err error
	c.Connection, err = amqp.Open(socket, amqp.Config{
		SASL:  []amqp.Authentication{plainAuth{uri.PlainAuth(), properties}},
		Vhost: uri.Vhost, Heartbeat: heartbeat, Locale: "en_US", Properties: properties,
	})
	if err != nil {
		err = socket.explain(err)
		c.raw.Close()
	}
	return err
}

// onChannel calls f with a channel for declarations. An error of the broker closes it, and
// the next call opens another one.
func (c *connection) onChannel(f func(*amqp.Channel) error) (err error) {
	if c.declaring == nil {
		if c.declaring, err = c.Channel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
	}
	if err = f(c.declaring); err != nil {
		c.declaring = nil
	}
	return err
}

// within calls f, which waits for the broker, and ends the connection under it after
// timeout or when ctx ends.
func (c *connection) within(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errors.New("the broker did not answer in time"))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	err := f()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// closeSoon closes the socket after closeTimeout, so that a call that still waits for the
// broker returns. Stop the timer when the call has returned.
func (c *connection) closeSoon() *time.Timer {
	return time.AfterFunc(c.closeTimeout, func() { c.raw.Close() })
}

// close closes the connection and waits for its watchers.
func (c *connection) close() {
	defer c.closeSoon().Stop()
	c.Close() // its error does not matter any more
	c.watchers.Wait()
}
