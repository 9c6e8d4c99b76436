package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// servers are addresses.
type servers struct{ amqp, etcd, statsd string }

// composeServers is where docker-compose publishes its servers.
var composeServers = servers{"amqp://guest:guest@localhost:5672/", "localhost:2379", "localhost:8125"}

// useCompose takes the servers of docker-compose, if they answer and no
// other consumer uses the queues.
func (s *env) useCompose(ctx context.Context) error {
	at := s.opts.servers
	b := broker{url: at.amqp}
	defer b.close()
	for _, role := range roles {
		queue := role + "-queue"
		ready, consumers, err := b.inspect(queue)
		if err != nil {
			return &beginError{fmt.Errorf("%w; bring the servers up: docker-compose up -d", err)}
		}
		if consumers > 0 {
			return &beginError{fmt.Errorf("%s has a consumer already: stop that %s service first", queue, role)}
		}
		if ready > 0 {
			return &beginError{fmt.Errorf("%s is not empty (%d messages): run that service until it is", queue, ready)}
		}
	}
	if err := pingEtcd(ctx, at.etcd); err != nil {
		return &beginError{fmt.Errorf("reach etcd at %s: %w; bring the servers up: docker-compose up -d", at.etcd, err)}
	}
	relay, err := startRelay(at.statsd, s.statsd.Addr())
	if err != nil {
		return err
	}
	s.relay = relay
	s.amqpURL, s.etcdAt, s.statsdAt = at.amqp, at.etcd, relay.addr()
	s.screen.note("Graphite: http://localhost:80, below Metrics/stats_counts")
	return nil
}

func pingEtcd(ctx context.Context, addr string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = client.Get(ctx, "/service/")
	return err
}

// relay sends each packet it gets to several addresses: statsd keeps its sums
// to itself, and the demo needs them too.
type relay struct {
	conn net.PacketConn
	to   []net.Conn
	gone chan struct{}
}

func startRelay(to ...string) (*relay, error) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the relay to statsd: %w", err)
	}
	r := &relay{conn: conn, gone: make(chan struct{})}
	for _, addr := range to {
		out, err := net.Dial("udp", addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start the relay to statsd: %w", err), conn.Close())
		}
		r.to = append(r.to, out)
	}
	go r.run()
	return r, nil
}

func (r *relay) run() {
	defer close(r.gone)
	packet := make([]byte, 1<<16)
	for {
		n, _, err := r.conn.ReadFrom(packet)
		if err != nil {
			return // closed
		}
		for _, out := range r.to {
			out.Write(packet[:n]) // a statsd that is away misses it
		}
	}
}

func (r *relay) addr() string { return r.conn.LocalAddr().String() }

func (r *relay) close() {
	r.conn.Close()
	<-r.gone
	for _, out := range r.to {
		out.Close()
	}
}
