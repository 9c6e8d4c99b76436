package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// newBroker is an env without etcd, in a virtual host of its own on the shared
// broker.
func newBroker(t *testing.T) (e *env, vhost string) {
	t.Helper()
	t.Parallel() // it shares nothing
	vhost = newVhost(t)
	e = newBrokerEnv(t, vhost, "orders")
	e.amqpURL = e.directAMQP
	return e, vhost
}

// ctl runs rabbitmqctl on the shared broker.
func ctl(t *testing.T, args ...string) {
	t.Helper()
	if _, err := shared.rabbit.Ctl(context.WithoutCancel(t.Context()), args...); err != nil {
		t.Fatal(err)
	}
}

// waitDepth waits until n messages wait in a queue, see depth.
func (e *env) waitDepth(queue string, n int) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("%d messages in %s", n, queue), func() error {
		if depth := e.depth(queue); depth != n {
			return fmt.Errorf("%d wait", depth)
		}
		return nil
	})
}

// relay forwards connections to the shared broker and counts them. It delays the
// broker's answer to a login by loginDelay.
type relay struct {
	accepted   atomic.Int32
	loginDelay time.Duration
}

// newRelay makes the services of e use a relay.
func newRelay(e *env, loginDelay time.Duration) *relay {
	e.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	e.must(err)
	e.t.Cleanup(func() { l.Close() })
	r := &relay{loginDelay: loginDelay}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			r.accepted.Add(1)
			go r.pass(client)
		}
	}()
	e.amqpURL = strings.Replace(e.amqpURL, fmt.Sprint("127.0.0.1:", shared.rabbit.Port()), l.Addr().String(), 1)
	return r
}

// pass forwards one connection until either side closes it.
func (r *relay) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", shared.rabbit.Port()))
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		io.Copy(server, client)
	}()
	start := make([]byte, 64<<10) // connection.start, in one piece
	n, err := server.Read(start)
	if err != nil {
		return
	}
	client.Write(start[:n])
	<-time.After(r.loginDelay)
	io.Copy(client, server)
}
