package stack_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// A write that etcd has confirmed survives a kill and a stop. A paused etcd does not
// answer.
func TestEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it starts servers")
	}
	t.Parallel()
	ctx := deadline(t)
	e, err := stack.StartEtcd(ctx, t.TempDir(), stack.EtcdOptions{})
	check(t, err)
	closeAtEnd(t, e)
	client, err := e.Client()
	check(t, err)
	defer client.Close()
	_, err = client.Put(ctx, "k", "v")
	check(t, err)

	check(t, e.Kill())
	if _, err := net.Dial("tcp", e.Endpoint()); err == nil {
		t.Error("a killed etcd answers")
	}
	check(t, e.Start(ctx))
	if err := e.Start(ctx); err == nil {
		t.Error("started twice")
	}

	check(t, e.Pause())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := client.Get(short, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused etcd answers: %v", err)
	}
	check(t, e.Resume())
	_, err = client.Get(ctx, "k")
	check(t, err)

	check(t, e.Stop(ctx))
	check(t, e.Start(ctx))
	resp, err := client.Get(ctx, "k")
	check(t, err)
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v" {
		t.Errorf("after a kill and a stop: %v", resp.Kvs)
	}
}

// A server does not start in a folder with files, because Close removes the folder.
func TestFolderInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	check(t, os.WriteFile(kept, nil, 0o600))
	if e, err := stack.StartEtcd(deadline(t), dir, stack.EtcdOptions{}); err == nil {
		e.Close()
		t.Error("etcd was started in a folder with files")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}
