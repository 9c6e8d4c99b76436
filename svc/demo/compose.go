package main

import (
	"context"
	"fmt"
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
	if err := s.statsd.Forward(at.statsd); err != nil {
		return err
	}
	s.amqpURL, s.etcdAt = at.amqp, at.etcd
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
