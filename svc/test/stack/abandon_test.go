package stack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// abandonVar names the environment variable that makes this test binary run abandon,
// with its value as the folder.
const abandonVar = "STACK_TEST_ABANDON"

// abandon starts servers, pauses one of them, prints their addresses and waits to be
// killed.
func abandon(dir string) (exit int) {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	e, err := stack.StartEtcd(ctx, filepath.Join(dir, "etcd"), stack.EtcdOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer e.Close()
	r, err := stack.StartRabbit(ctx, filepath.Join(dir, "rabbit"), stack.RabbitOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer r.Close()
	if err := e.Pause(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(e.Endpoint(), fmt.Sprintf("127.0.0.1:%d", r.Port()))
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// No server outlives the program that started it, even if the program is killed and
// the server is paused.
func TestParentKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it starts servers")
	}
	t.Parallel()
	ctx := deadline(t)
	exe, err := os.Executable()
	check(t, err)
	// The parent and all processes that it starts inherit the write end of this pipe.
	// The read end reaches EOF when the last of them has ended.
	family, inherited, err := os.Pipe()
	check(t, err)
	defer family.Close()
	parent := exec.CommandContext(ctx, exe)
	parent.Env = append(os.Environ(), abandonVar+"="+t.TempDir())
	parent.ExtraFiles = []*os.File{inherited}
	parent.Stderr = os.Stderr
	stdin, err := parent.StdinPipe() // the parent ends when this test dies
	check(t, err)
	defer stdin.Close()
	stdout, err := parent.StdoutPipe()
	check(t, err)
	check(t, parent.Start())
	inherited.Close()

	var etcd, rabbit string
	if _, err := fmt.Fscanln(stdout, &etcd, &rabbit); err != nil {
		t.Fatalf("the parent has not started its servers: %v, %v", err, parent.Wait())
	}
	for _, addr := range []string{etcd, rabbit} {
		conn, err := net.Dial("tcp", addr)
		check(t, err)
		conn.Close()
	}

	check(t, parent.Process.Kill())
	if err := parent.Wait(); !strings.Contains(fmt.Sprint(err), "killed") {
		t.Fatal(err)
	}
	until, _ := ctx.Deadline()
	check(t, family.SetReadDeadline(until))
	if _, err := io.ReadAll(family); err != nil {
		t.Fatalf("a process has outlived its parent: %v", err)
	}
	for _, addr := range []string{etcd, rabbit} {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("%s still answers", addr)
		}
	}
}
