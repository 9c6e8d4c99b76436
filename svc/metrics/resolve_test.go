package metrics

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestUnresolvableName(t *testing.T) {
	var asked sync.Map // the times at which a name server was dialed
	useNameServer(t, func(context.Context) (net.Conn, error) {
		asked.Store(time.Now(), true)
		return nil, errors.New("no name server")
	})
	synctest.Test(t, func(t *testing.T) {
		var log lines
		c := Start(unresolvable, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
		begin := time.Now()
		for range 100_000 {
			c.Count("ignored")
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("counting took %v", took)
		}
		<-time.After(time.Hour)
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 1 ||
			!strings.Contains(log.String(), "statsd is unreachable") || !strings.Contains(log.String(), "STATSD_ADDR") {
			t.Errorf("in an hour %d lines are logged, want one:\n%s", n, log.String())
		}
		times := 0
		for range asked.Range {
			times++
		}
		if most := int(time.Hour/redial) + 1; times < 2 || times > most {
			t.Errorf("in an hour the name was looked up %d times, want 2 to %d", times, most)
		}
		begin = time.Now()
		c.Close()
		if took := time.Since(begin); took > 0 {
			t.Errorf("close took %v", took)
		}
	})
}

func TestNameServerHangs(t *testing.T) {
	hang := make(chan (<-chan struct{}), 1) // holds the channel that dials wait for; it is made in the bubble
	useNameServer(t, func(context.Context) (net.Conn, error) {
		end := <-hang
		hang <- end
		<-end
		return nil, errors.New("no name server")
	})
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		hang <- end
		c := report(t, unresolvable)
		<-time.After(time.Minute)
		begin := time.Now()
		for range 100_000 {
			c.Count("ignored")
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("counting took %v", took)
		}
		c.Close()
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("close took %v", took)
		}
		close(end)
		<-c.done
	})
}

// Counts from before statsd's name can be resolved are sent later.
func TestNameIsResolvedLater(t *testing.T) {
	var known atomic.Bool
	useNameServer(t, func(context.Context) (net.Conn, error) {
		if known.Load() {
			return nameServer(1), nil
		}
		return nil, errors.New("no name server")
	})
	s := listen(t)
	synctest.Test(t, func(t *testing.T) {
		var log lines
		_, port, _ := net.SplitHostPort(s.addr())
		c := Start("statsd.invalid:"+port, "orders_", Names{Counters: names}, slog.New(slog.NewTextHandler(&log, nil)))
		c.Count("ignored")
		<-time.After(time.Minute)
		known.Store(true)
		c.Count("ignored")
		<-time.After(redial + interval)
		synctest.Wait()
		c.Close()
		s.rest()
		s.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 2})
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "statsd is reachable again") {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// A statsd that comes back at another address is found there.
func TestNameMoves(t *testing.T) {
	var host atomic.Uint32
	host.Store(1)
	useNameServer(t, func(context.Context) (net.Conn, error) { return nameServer(byte(host.Load())), nil })
	here := listen(t)
	_, port, _ := net.SplitHostPort(here.addr())
	there := listenAt(t, "127.0.0.2:"+port)
	synctest.Test(t, func(t *testing.T) {
		c := report(t, "statsd.invalid:"+port)
		c.Count("ignored")
		<-time.After(2 * interval)
		synctest.Wait()
		host.Store(2)
		<-time.After(reresolve + resend)
		synctest.Wait()
		c.Count("ignored")
		c.Count("malformed")
		c.Close()
		here.rest()
		here.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 0, "orders_ignored": 1})
		there.rest()
		there.expect(map[string]int64{"orders_new_order_ok": 0, "orders_malformed": 1, "orders_ignored": 1})
	})
}

// useNameServer makes net connect to name servers with dial.
func useNameServer(t *testing.T, dial func(context.Context) (net.Conn, error)) {
	net.LookupHost("localhost") // net makes a channel once, which must not be in a bubble
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	t.Cleanup(func() { net.DefaultResolver = before })
}

// nameServer returns a connection to a name server that resolves every name to
// 127.0.0.host.
func nameServer(host byte) net.Conn {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		size := make([]byte, 2)
		if _, err := io.ReadFull(server, size); err != nil {
			return
		}
		m := make([]byte, binary.BigEndian.Uint16(size))
		if _, err := io.ReadFull(server, m); err != nil {
			return
		}
		const header = 12
		question := header + bytes.IndexByte(m[header:], 0) + len("\x00ttcc") // name, type, class
		isA := m[question-3] == 1
		answer := append([]byte{m[0], m[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, m[header:question]...)
		if isA {
			answer[7] = 1 // one answer: the name above, A, IN, 1 s, 4 bytes
			answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, host)
		}
		server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}()
	return client
}

// unresolvable is an address whose name cannot be resolved.
const unresolvable = "no-such-host.invalid:8125"
