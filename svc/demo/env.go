package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/harness"
	"github.com/streamdal/gophercon2021/svc/stack"
	"golang.org/x/sync/errgroup"
)

// env holds what all scenes share: the servers, the terminal and the page.
type env struct {
	opts    options
	screen  *screen
	input   *bufio.Reader // for Enter with -pause
	status  *status
	pageURL string
	dir     string // everything on the disk: the built commands, the servers' data

	servers   harness.Addresses // for the services
	rabbit    *stack.Rabbit
	etcd      *stack.Etcd
	statsd    *stack.Statsd
	publisher *harness.Publisher // used by the scenes

	closers []func() error
}

// closeLater makes close call f, before the functions of earlier calls.
func (s *env) closeLater(f func() error) {
	s.closers = append(s.closers, f)
}

// close kills all processes and removes all files. Nothing needs to be saved, so it is
// quick.
func (s *env) close() error {
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// open prepares everything that the scenes need.
func (s *env) open(ctx context.Context) (err error) {
	s.every(s.screen.interval(), s.screen.refresh)
	if s.dir, err = os.MkdirTemp("", "svc-demo-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	s.closeLater(func() error { return os.RemoveAll(s.dir) })
	if s.statsd, err = stack.StartStatsd(); err != nil {
		return err
	}
	s.closeLater(s.statsd.Close)
	s.status = newStatus(s.statsd)
	url, stopPage, err := startPage(s.status)
	if err != nil {
		return err
	}
	s.closeLater(stopPage)
	s.pageURL = url
	s.screen.note("Live page: " + s.pageURL)

	if err := s.startServers(ctx); err != nil {
		return err
	}
	s.servers = harness.Addresses{AMQP: s.rabbit.URL(), Etcd: s.etcd.Endpoint(), Statsd: s.statsd.Addr()}
	s.publisher = s.newPublisher()
	s.startMonitor()
	s.screen.count(s.status.current)
	return nil
}

// startServers builds the commands and starts RabbitMQ and etcd, all at the same time.
func (s *env) startServers(ctx context.Context) error {
	s.screen.wait("Building the service, starting RabbitMQ and etcd")
	began := time.Now()
	ready := func(what string, err error) error {
		if err == nil {
			s.screen.note(fmt.Sprintf("%s (%.1f s)", what, time.Since(began).Seconds()))
		}
		return err
	}
	starting, ctx := errgroup.WithContext(ctx)
	starting.Go(func() (err error) {
		s.rabbit, err = stack.StartRabbit(ctx, filepath.Join(s.dir, "rabbitmq"), stack.RabbitOptions{})
		return ready("RabbitMQ is ready.", err)
	})
	starting.Go(func() (err error) {
		s.etcd, err = stack.StartEtcd(ctx, filepath.Join(s.dir, "etcd"), stack.EtcdOptions{})
		return ready("etcd is ready.", err)
	})
	starting.Go(func() error {
		return ready("The service is built.", harness.Build(ctx, s.dir, []string{"svc", "svc/receiver"}))
	})
	err := starting.Wait()
	s.screen.below(nil)
	if s.rabbit != nil {
		s.closeLater(s.rabbit.Close)
	}
	if s.etcd != nil {
		s.closeLater(s.etcd.Close)
	}
	return err
}

// newPublisher returns a publisher, which close closes.
func (s *env) newPublisher() *harness.Publisher {
	// The timeout is short, so that the demo soon notices that the broker, which it has
	// killed, is reachable again.
	p := &harness.Publisher{URL: s.servers.AMQP, DialTimeout: 2 * time.Second}
	s.closeLater(func() error { p.Close(); return nil })
	return p
}

// startMonitor updates the rates and the depths of the queues until close.
func (s *env) startMonitor() {
	s.every(time.Second, s.status.sampleRates)
	broker := s.newPublisher()
	s.every(250*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		for i, role := range roles {
			ready, err := broker.Ready(ctx, role+"-queue")
			if err != nil {
				ready = -1
			}
			s.status.update(func(v *view) { v.Services[i].Queued = ready })
		}
	})
}

// every calls f at each interval until close.
func (s *env) every(interval time.Duration, f func()) {
	stop := make(chan struct{})
	var calling sync.WaitGroup
	calling.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-stop:
				return
			}
		}
	})
	s.closeLater(func() error {
		close(stop)
		calling.Wait()
		return nil
	})
}
