package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// example1 publishes events, consumes them, and exits with status 0 on ctrl-c. It exits
// with status 1 if it cannot connect.
func TestExample1(t *testing.T) {
	b := newProxiedEnv(t)
	bin := filepath.Join(t.TempDir(), "example1")
	if out, err := exec.Command("go", "build", "-o", bin, "../../../example1").CombinedOutput(); err != nil {
		t.Fatalf("build example1: %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	cmd.Env = append(cmd.Environ(), "AMQP_URL="+b.amqpURL)
	s := startCommand(t, "example1", cmd)
	line := s.waitLog("consumed")
	_, body, _ := strings.Cut(line, "{")
	if s.waitLog("published", strings.TrimSpace(body)); !strings.Contains(body, `"type":"new_order","id":"`) || !strings.Contains(body, `"user_id":"`) {
		t.Errorf("example1 published %q", line)
	}
	s.signal(syscall.SIGINT)
	s.wantExit(0)
	if n := b.depth("my-queue"); n != 0 {
		t.Errorf("%d messages are left", n)
	}

	cmd = exec.Command(bin)
	cmd.Env = append(cmd.Environ(), "AMQP_URL=amqp://127.0.0.1:1/")
	s = startCommand(t, "example1 without a broker", cmd)
	s.wantExit(1)
	s.waitLog("connect to the broker in AMQP_URL")
}
