package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// env holds what all scenes share: the servers, the terminal and the page.
type env struct {
	opts    options
	screen  *screen
	input   *bufio.Reader // for Enter with -pause
	status  *status
	pageURL string
	dir     string // everything on the disk: the built commands, the servers' data

	servers   *harness.Servers
	addresses harness.Addresses // of the servers, for the services
	publisher *harness.Publisher

	closers []func() error
}

// open prepares everything that the scenes need.
func (e *env) open(ctx context.Context) (err error) {
	refresh := time.Second
	if e.screen.live {
		refresh = 100 * time.Millisecond
	}
	e.every(refresh, e.screen.refresh)
	if e.dir, err = os.MkdirTemp("", "svc-demo-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	e.closeLater(func() error { return os.RemoveAll(e.dir) })

	// The page shows the counters of statsd from now on.
	statsd, err := stack.StartStatsd()
	if err != nil {
		return err
	}
	e.closeLater(statsd.Close)
	e.status = newStatus(statsd)
	url, stopPage, err := startPage(e.status)
	if err != nil {
		return err
	}
	e.closeLater(stopPage)
	e.pageURL = url
	e.screen.note("Live page: " + e.pageURL)

	began := time.Now()
	e.screen.wait("Building the service, starting RabbitMQ and etcd")
	e.servers, err = harness.Prepare(ctx, e.dir, func(ready string) {
		e.screen.note(fmt.Sprintf("%s (%.1f s)", ready, time.Since(began).Seconds()))
	}, []string{"svc", "svc/receiver"})
	e.screen.below(nil)
	if err != nil {
		return err
	}
	e.closeLater(e.servers.Close)
	e.addresses = harness.Addresses{AMQP: e.servers.Rabbit.URL(), Etcd: e.servers.Etcd.Endpoint(), Statsd: statsd.Addr()}

	// The timeout is short, so that the demo soon notices that the broker, which it has
	// killed, is reachable again.
	e.publisher = &harness.Publisher{URL: e.addresses.AMQP, DialTimeout: 2 * time.Second}
	e.closeLater(func() error { e.publisher.Close(); return nil })
	e.startMonitor()
	e.status.update(func(v *view) { v.Title, v.Text = "Ready", "Two services, one broker, one etcd." })
	e.screen.count(e.status.current)
	return nil
}

// startMonitor updates the rates and the depths of the queues until close.
func (e *env) startMonitor() {
	e.every(time.Second, e.status.sampleRates)
	broker := harness.Publisher{URL: e.addresses.AMQP}
	e.closeLater(func() error { broker.Close(); return nil })
	e.every(250*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		for i, role := range roles {
			queued := "?"
			if ready, err := broker.Ready(ctx, role+"-queue"); err == nil {
				queued = fmt.Sprint(ready)
			}
			e.status.update(func(v *view) { v.Services[i].Queued = queued })
		}
	})
}

// every calls f at each interval until close.
func (e *env) every(interval time.Duration, f func()) {
	ctx, stop := context.WithCancel(context.Background())
	var calling sync.WaitGroup
	calling.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-ctx.Done():
				return
			}
		}
	})
	e.closeLater(func() error {
		stop()
		calling.Wait()
		return nil
	})
}

// closeLater makes close call f, before the functions of earlier calls.
func (e *env) closeLater(f func() error) {
	e.closers = append(e.closers, f)
}

// close kills all processes and removes all files. Nothing needs to be saved, so it is
// quick.
func (e *env) close() error {
	var errs []error
	for _, f := range slices.Backward(e.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
