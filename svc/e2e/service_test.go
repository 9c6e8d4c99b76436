package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// maxWait is how long a test waits for anything.
const maxWait = 60 * time.Second

// service is one running process of svc.
type service struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{}
}

// start runs the service in a role. Later variables win.
func (e *env) start(role string, vars ...string) *service {
	e.t.Helper()
	cmd := exec.Command(shared.bin)
	cmd.Env = append(e.vars("SERVICE_NAME="+role), vars...)
	return startCommand(e.t, fmt.Sprintf("%s-%d", role, e.started.Add(1)), cmd)
}

// startLogging is start with the log in a file, which costs the test no time.
func (e *env) startLogging(role string, log *os.File, vars ...string) *service {
	e.t.Helper()
	cmd := exec.Command(shared.bin)
	cmd.Env = append(e.vars("SERVICE_NAME="+role), vars...)
	cmd.Stderr = log
	return startCommand(e.t, role, cmd)
}

// startCommand runs a command whose standard error is a log.
func startCommand(t testing.TB, name string, cmd *exec.Cmd) *service {
	t.Helper()
	s := &service{t: t, name: name, cmd: cmd, log: newLogBuffer(), exited: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stdout, cmd.Stderr = s.log, s.log
	}
	// A group of its own: `go run` has a child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.exited)
		cmd.Wait() // the status is in cmd.ProcessState
		s.log.end()
	}()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("the log of %s ends:\n%s", name, s.log.tail(60))
		}
		if strings.Contains(s.log.String(), "DATA RACE") {
			t.Errorf("%s: data race:\n%s", name, s.log.tail(200))
		}
	})
	return s
}

func (s *service) signal(sig syscall.Signal) { syscall.Kill(-s.cmd.Process.Pid, sig) }

// kill ends the process as a crash does.
func (s *service) kill() {
	s.signal(syscall.SIGKILL)
	<-s.exited
}

// stop asks the process to stop and waits until it has. It must exit with 0.
func (s *service) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

func (s *service) wantExit(code int) {
	s.t.Helper()
	select {
	case <-s.exited:
	case <-time.After(maxWait):
		s.t.Fatalf("%s does not stop", s.name)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("%s: exit status %d (%v), want %d", s.name, got, s.cmd.ProcessState, code)
	}
}

// waitLog waits for a line that contains all parts, and returns it.
func (s *service) waitLog(parts ...string) string {
	s.t.Helper()
	line, err := s.log.wait(maxWait, 1, parts)
	if err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
	return line
}

// waitLogs waits for n such lines.
func (s *service) waitLogs(n int, parts ...string) {
	s.t.Helper()
	if _, err := s.log.wait(maxWait, n, parts); err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
}

// alive fails the test if the process has ended.
func (s *service) alive() {
	s.t.Helper()
	select {
	case <-s.exited:
		s.t.Fatalf("%s has ended: %v", s.name, s.cmd.ProcessState)
	default:
	}
}

// logBuffer keeps what a process writes, and wakes who waits for a line.
type logBuffer struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	ended   bool
}

func newLogBuffer() *logBuffer { return &logBuffer{changed: make(chan struct{})} }

var _ io.Writer = (*logBuffer)(nil)

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake()
	return b.text.Write(p)
}

func (b *logBuffer) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *logBuffer) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.wake()
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// count returns how many lines contain all parts.
func (b *logBuffer) count(parts ...string) int {
	_, n := match(b.String(), parts, -1)
	return n
}

// tail returns the last n lines that are not about one event that went well.
func (b *logBuffer) tail(n int) string {
	var lines []string
	for line := range strings.Lines(b.String()) {
		if !strings.Contains(line, "msg=processed") && !strings.Contains(line, "msg=skipped") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// wait waits for the n-th line that contains all parts.
func (b *logBuffer) wait(d time.Duration, n int, parts []string) (string, error) {
	timeout := time.After(d)
	for {
		b.mu.Lock()
		text, changed, ended := b.text.String(), b.changed, b.ended
		b.mu.Unlock()
		line, found := match(text, parts, n)
		if found >= n {
			return line, nil
		}
		if ended {
			return "", fmt.Errorf("it ended with %d of %d lines with %q", found, n, parts)
		}
		select {
		case <-changed:
		case <-timeout:
			return "", fmt.Errorf("only %d of %d lines with %q after %v", found, n, parts, d)
		}
	}
}

// match returns the n-th complete line of text with all parts, and how many
// there are up to it.
func match(text string, parts []string, n int) (line string, found int) {
	for l := range strings.Lines(text) {
		all := strings.HasSuffix(l, "\n")
		for _, p := range parts {
			all = all && strings.Contains(l, p)
		}
		if all {
			found++
			if line = l; found == n {
				break
			}
		}
	}
	return line, found
}

// eventually waits until f returns nil, asking now and then: it is for servers
// that do not tell when they change.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(maxWait)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s: still not after %v: %v", what, maxWait, err)
		}
	}
}

var errNotYet = errors.New("not yet")

// descriptors returns how many files the process has open.
func (s *service) descriptors() int {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(files)
}
