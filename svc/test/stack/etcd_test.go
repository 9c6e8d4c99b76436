package stack_test

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func etcdClient(t *testing.T, e *stack.Etcd) *clientv3.Client {
	t.Helper()
	client, err := e.Client()
	check(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// A write that etcd has confirmed survives a kill and a stop. A paused etcd does not
// answer.
func TestEtcd(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	e, err := stack.StartEtcd(ctx, t.TempDir(), stack.EtcdOptions{})
	check(t, err)
	closeAtEnd(t, e)
	client := etcdClient(t, e)
	_, err = client.Put(ctx, "k", "v")
	check(t, err)

	check(t, e.Kill())
	check(t, e.Kill())
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

func TestEtcdKilledWhilePaused(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	dir := filepath.Join(t.TempDir(), "etcd")
	e, err := stack.StartEtcd(ctx, dir, stack.EtcdOptions{})
	check(t, err)
	check(t, e.Pause())
	check(t, e.Kill())
	check(t, e.Close())
	check(t, e.Close())
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder exists after Close: %v", err)
	}
	if err := e.Start(ctx); !errors.Is(err, os.ErrClosed) {
		t.Errorf("started after Close: %v", err)
	}
}

// A cluster works without one of its members, and the member catches up when it is back.
func TestEtcdCluster(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	members, err := stack.StartEtcdCluster(ctx, t.TempDir(), 3, stack.EtcdOptions{})
	check(t, err)
	for _, e := range members {
		closeAtEnd(t, e)
	}
	check(t, members[0].Kill())
	client := etcdClient(t, members[1])
	put := func() error {
		// A write during the election of a new leader may get no answer.
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := client.Put(ctx, "k", "v")
		return err
	}
	for put() != nil {
		check(t, ctx.Err())
	}
	check(t, members[0].Start(ctx))
	resp, err := etcdClient(t, members[0]).Get(ctx, "k")
	check(t, err)
	if len(resp.Kvs) != 1 {
		t.Errorf("the member that was killed has %v", resp.Kvs)
	}
}

func TestEtcdOptions(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	files := makeCertificates(t)
	e, err := stack.StartEtcd(ctx, t.TempDir(), stack.EtcdOptions{
		Cert: files.cert, Key: files.key, CACert: files.ca,
		Config: map[string]any{"max-txn-ops": 3},
	})
	check(t, err)
	closeAtEnd(t, e)
	connect := func(config *tls.Config) *clientv3.Client {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, TLS: config, Logger: zap.NewNop()})
		check(t, err)
		t.Cleanup(func() { client.Close() })
		return client
	}

	puts := []clientv3.Op{clientv3.OpPut("a", ""), clientv3.OpPut("b", ""), clientv3.OpPut("c", ""), clientv3.OpPut("d", "")}
	_, err = connect(files.client).Txn(ctx).Then(puts[:3]...).Commit()
	check(t, err)
	if _, err = connect(files.client).Txn(ctx).Then(puts...).Commit(); err == nil {
		t.Error("etcd ignores max-txn-ops")
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(e.Endpoint(), "https://"), &tls.Config{RootCAs: files.client.RootCAs})
	check(t, err)
	defer conn.Close()
	end, _ := ctx.Deadline()
	check(t, conn.SetDeadline(end))
	// In TLS 1.3 the refusal of a missing certificate follows the handshake.
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate: %v", err)
	}
}

// The error of a failed start contains the server's own message. A failed start leaves
// no files.
func TestEtcdDoesNotStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	_, err := stack.StartEtcd(deadline(t), dir, stack.EtcdOptions{Config: map[string]any{"auto-compaction-mode": "sometimes"}})
	if err == nil || !strings.Contains(err.Error(), `"sometimes"`) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder still exists: %v", err)
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

// A restored member has the data and the revision of the backup. A bump raises the
// revision.
func TestEtcdRestore(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	e, err := stack.StartEtcd(ctx, t.TempDir(), stack.EtcdOptions{})
	check(t, err)
	closeAtEnd(t, e)
	client := etcdClient(t, e)
	put := func(value string) int64 {
		t.Helper()
		resp, err := client.Put(ctx, "k", value)
		check(t, err)
		return resp.Header.Revision
	}
	saved := put("saved")
	backup := filepath.Join(t.TempDir(), "backup")
	check(t, e.Save(ctx, backup))
	put("later")
	const bump = 1_000_000
	for _, by := range []uint64{0, bump} {
		check(t, e.Kill())
		check(t, e.Restore(backup, by))
		check(t, e.Start(ctx))
		resp, err := client.Get(ctx, "k")
		check(t, err)
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "saved" {
			t.Errorf("restored: %v", resp.Kvs)
		}
		if now := put("again"); now != saved+int64(by)+1 {
			t.Errorf("bumped by %d: revision %d, it was %d when saved", by, now, saved)
		}
	}
}
