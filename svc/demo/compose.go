package main

import (
	"context"
	"fmt"
	"time"

	"github.com/streamdal/gophercon2021/svc/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// composeServers holds the addresses at which docker-compose publishes its servers.
var composeServers = harness.Addresses{
	AMQP: "amqp://guest:guest@localhost:5672/", Etcd: "localhost:2379", Statsd: "localhost:8125",
}

// useCompose makes the demo use the servers of docker-compose. It fails if they do not
// answer or if the queues are in use.
func (s *env) useCompose(ctx context.Context) error {
	at := s.opts.composeServers
	if err := checkCompose(ctx, at); err != nil {
		return &beginError{err}
	}
	s.servers.AMQP, s.servers.Etcd = at.AMQP, at.Etcd
	s.screen.note("Graphite: http://localhost:80, below Metrics/stats_counts")
	return s.statsd.Forward(at.Statsd)
}

func checkCompose(ctx context.Context, at harness.Addresses) error {
	broker := harness.Publisher{URL: at.AMQP, DialTimeout: dialTimeout}
	defer broker.Close()
	for _, role := range roles {
		queue := role + "-queue"
		ready, consumers, err := broker.Inspect(queue)
		switch {
		case err != nil:
			return fmt.Errorf("%w; bring the servers up: docker compose up -d", err)
		case consumers > 0:
			return fmt.Errorf("%s has a consumer already: stop that %s service first", queue, role)
		case ready > 0:
			return fmt.Errorf("%s is not empty (%d messages): run that service until it is", queue, ready)
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{at.Etcd}, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err = client.Get(ctx, "/service/"); err != nil {
		return fmt.Errorf("reach etcd at %s: %w; bring the servers up: docker compose up -d", at.Etcd, err)
	}
	return nil
}
