package stack

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

// serveEtcd runs etcd with the settings of a configuration file until it receives
// SIGTERM. It prints one line when it serves. The executable calls it when it is
// started under etcdName.
func serveEtcd(configFile string) (exit int) {
	if err := runEtcd(configFile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runEtcd(configFile string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	config, err := embed.ConfigFromFile(configFile)
	if err != nil {
		return fmt.Errorf("read %s: %w", configFile, err)
	}
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer etcd.Close()
	ready := etcd.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			fmt.Println("serving")
			ready = nil
		case <-stop:
			return nil
		case <-etcd.Server.StopNotify():
			return errors.New("etcd has stopped")
		case err := <-etcd.Err():
			return fmt.Errorf("serve: %w", err)
		}
	}
}
