package harness

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	"golang.org/x/sync/errgroup"
)

// Servers are the servers that keep the state of services.
type Servers struct {
	Rabbit *stack.Rabbit
	Etcd   *stack.Etcd
}

// Prepare builds commands into dir, as [Build] does, and starts servers in folders below
// it, all at the same time. It calls report when one of them is ready; it may do so from
// several goroutines at once. After an error it leaves nothing running.
func Prepare(ctx context.Context, dir string, report func(ready string), commands []string, flags ...string) (*Servers, error) {
	s := &Servers{}
	preparing, ctx := errgroup.WithContext(ctx)
	prepare := func(ready string, f func() error) {
		preparing.Go(func() error {
			err := f()
			if err == nil {
				report(ready)
			}
			return err
		})
	}
	prepare("RabbitMQ is ready.", func() (err error) {
		s.Rabbit, err = stack.StartRabbit(ctx, filepath.Join(dir, "rabbitmq"), stack.RabbitOptions{})
		return err
	})
	prepare("etcd is ready.", func() (err error) {
		s.Etcd, err = stack.StartEtcd(ctx, filepath.Join(dir, "etcd"), stack.EtcdOptions{})
		return err
	})
	prepare("The service is built.", func() error { return Build(ctx, dir, commands, flags...) })
	if err := preparing.Wait(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close kills the servers and removes their folders.
func (s *Servers) Close() error {
	var errs []error
	if s.Etcd != nil {
		errs = append(errs, s.Etcd.Close())
	}
	if s.Rabbit != nil {
		errs = append(errs, s.Rabbit.Close())
	}
	return errors.Join(errs...)
}
