// Package e2e tests the whole service: it runs the program that `go build ./svc` makes
// against real servers that the tests start, break and restart.
//
// RabbitMQ must be installed; etcd is built in. Nothing needs to be running.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// shared holds the servers for tests that break no server.
var shared struct {
	rabbit *stack.Rabbit
	etcd   *stack.Etcd
	bin    string // the built service
}

func TestMain(m *testing.M) {
	// The tests mostly wait, so six run at once unless -parallel says otherwise.
	flag.Set("test.parallel", "6")
	flag.Parse()
	if testing.Short() {
		fmt.Println("-short: no end-to-end tests, because they start servers")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return fatal(err)
	}
	defer os.RemoveAll(dir)

	if err := watchSources(); err != nil {
		return fatal(err)
	}
	shared.bin = filepath.Join(dir, "svc")
	var flags []string
	if raceEnabled {
		flags = append(flags, "-race")
	}
	servers, err := harness.Prepare(ctx, dir, func(string) {}, []string{"svc"}, flags...)
	if err != nil {
		return fatal(err)
	}
	defer servers.Close()
	shared.rabbit, shared.etcd = servers.Rabbit, servers.Etcd
	return m.Run()
}

// watchSources opens the sources of the service, which the test does not import. go test
// does not use a cached result if a file that the test has opened has changed.
func watchSources() error {
	return filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.ReadFile(path)
		}
		return err
	})
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}
