package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/streamdal/gophercon2021/svc/stack"
	"golang.org/x/sync/errgroup"
)

// env is what the scenes act on: the servers, the services that run, and the
// eyes of the audience.
type env struct {
	opts   options
	show   *show
	screen *screen
	page   *page
	dir    string // everything on the disk
	bin    string // the built service
	tag    string // of this run's ids: etcd may remember those of another

	receiverBin string // the built svc/receiver

	amqpURL, etcdAt string
	rabbit          *stack.Rabbit // nil with -compose
	etcd            *stack.Etcd   // nil with -compose
	statsd          *stack.Statsd
	receiver        *receiver
	broker          broker // for the scenes

	watching sync.WaitGroup
	unwatch  context.CancelFunc

	services []*service // of the scene, the dead as well
	checks   []check    // that the scene has found
	held     bool       // all scenes hold, and -hold has been reached
}

// check is one number that a scene is judged by.
type check struct {
	what      string
	got, want int64
}

// beginError is that of a demo that could not begin for want of something that
// is not its own.
type beginError struct{ error }

// open builds the service, starts what it needs, and shows how far it is.
func (s *env) open(ctx context.Context) (err error) {
	s.tag = strconv.FormatInt(time.Now().Unix(), 36)
	if s.dir, err = os.MkdirTemp("", "svc-demo-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if s.receiver, err = startReceiver(); err != nil {
		return err
	}
	if s.statsd, err = stack.StartStatsd(); err != nil {
		return err
	}
	if s.page, err = startPage(s.show); err != nil {
		return err
	}
	s.screen.note("Live page: " + s.page.url)

	starting, ctx := errgroup.WithContext(ctx)
	s.screen.wait("Building the service, starting RabbitMQ and etcd")
	step := func(did string, f func(context.Context) error) {
		starting.Go(func() error {
			began := time.Now()
			if err := f(ctx); err != nil {
				return err
			}
			s.screen.note(fmt.Sprintf("%s (%.1f s)", did, time.Since(began).Seconds()))
			return nil
		})
	}
	if s.opts.compose {
		step("The servers of docker-compose answer.", s.useCompose)
	} else {
		step("RabbitMQ serves.", s.startRabbit)
		step("etcd serves.", s.startEtcd)
	}
	step("The service is built.", s.build)
	err = starting.Wait()
	s.screen.wait("")
	if err != nil {
		return err
	}
	s.broker.url = s.amqpURL
	s.watch()
	s.screen.count(s.show)
	return nil
}

func (s *env) startRabbit(ctx context.Context) (err error) {
	if s.rabbit, err = stack.StartRabbit(ctx, filepath.Join(s.dir, "rabbitmq"), stack.RabbitOptions{}); err == nil {
		s.amqpURL = s.rabbit.URL()
	}
	return err
}

func (s *env) startEtcd(ctx context.Context) (err error) {
	if s.etcd, err = stack.StartEtcd(ctx, filepath.Join(s.dir, "etcd"), stack.EtcdOptions{}); err == nil {
		s.etcdAt = s.etcd.Endpoint()
	}
	return err
}

// build makes the binaries of the service and of the receiver. An interrupted go command cleans up; should
// it not, its folder is in ours.
func (s *env) build(ctx context.Context) error {
	s.bin, s.receiverBin = filepath.Join(s.dir, "svc"), filepath.Join(s.dir, "receiver")
	const svc = "github.com/streamdal/gophercon2021/svc"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", s.dir+"/", svc, svc+"/receiver")
	cmd.Env = append(os.Environ(), "GOTMPDIR="+s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with its compilers
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build svc: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// watch keeps the numbers of the view up to date until close.
func (s *env) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	s.unwatch = cancel
	every := func(d time.Duration, f func()) {
		s.watching.Go(func() {
			for tick := time.NewTicker(d); ; {
				f()
				select {
				case <-tick.C:
				case <-ctx.Done():
					tick.Stop()
					return
				}
			}
		})
	}
	every(100*time.Millisecond, func() { s.show.sample(s.statsd.Counts(), time.Now()) })
	eye := broker{url: s.amqpURL} // its connection ends with the program, at the latest
	every(250*time.Millisecond, func() {
		for i, role := range roles {
			ready, _, err := eye.inspect(role + "-queue")
			if err != nil {
				ready = -1
			}
			s.show.update(func(v *view) { v.Services[i].Waiting = ready })
		}
	})
}

// close ends everything, by force: there is nothing to be saved. It is quick.
func (s *env) close() error {
	var ending errgroup.Group
	for _, p := range s.services {
		p.kill()
	}
	if s.rabbit != nil {
		ending.Go(s.rabbit.Close)
	}
	if s.etcd != nil {
		ending.Go(s.etcd.Close)
	}
	err := ending.Wait()
	s.broker.close()
	if s.unwatch != nil {
		s.unwatch()
		s.watching.Wait()
	}
	if s.page != nil {
		s.page.close()
	}
	if s.statsd != nil {
		s.statsd.Close()
	}
	if s.receiver != nil {
		s.receiver.close()
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}
