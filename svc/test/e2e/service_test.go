package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// maxWait bounds each wait of a test. On a loaded machine a broker takes a minute to start.
const maxWait = 2 * time.Minute

// service is one running process of svc.
type service struct {
	t       testing.TB
	name    string
	cmd     *exec.Cmd
	process *harness.Process
	log     serviceLog
	exited  <-chan struct{}
}

// start starts the service in a role. Later variables override earlier ones.
func (e *env) start(role string, vars ...string) *service {
	e.t.Helper()
	return e.startBinary(exec.Command(shared.bin), role, vars...)
}

// startLogging is start with the log in a file, so that the test spends no time on it.
func (e *env) startLogging(role string, log *os.File, vars ...string) *service {
	e.t.Helper()
	cmd := exec.Command(shared.bin)
	cmd.Stderr = log
	return e.startBinary(cmd, role, vars...)
}

// startBinary is start with a command that may differ from the service that all tests share.
func (e *env) startBinary(cmd *exec.Cmd, role string, vars ...string) *service {
	e.t.Helper()
	cmd.Env = append(e.vars("SERVICE_NAME="+role), vars...)
	return startCommand(e.t, fmt.Sprintf("%s-%d", role, e.started.Add(1)), cmd)
}

// startCommand starts a command and keeps its standard error as a log.
func startCommand(t testing.TB, name string, cmd *exec.Cmd) *service {
	t.Helper()
	p, err := harness.Start(name, cmd)
	must(t, err)
	s := &service{t: t, name: name, cmd: cmd, process: p, log: serviceLog{p.Log}, exited: p.Exited()}
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

func (s *service) signal(sig syscall.Signal) { s.process.Signal(sig) }

// kill ends the process as a crash does.
func (s *service) kill() { s.process.Kill() }

// stop sends SIGTERM and waits until the process has exited with status 0.
func (s *service) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

func (s *service) wantExit(code int) {
	s.t.Helper()
	must(s.t, s.process.WaitExit(deadline(s.t), code))
}

// waitLog waits for a line that contains all parts, and returns it.
func (s *service) waitLog(parts ...string) string {
	s.t.Helper()
	return s.waitLogs(1, parts...)
}

// waitLogs waits for n lines that contain all parts, and returns the last of them.
func (s *service) waitLogs(n int, parts ...string) string {
	s.t.Helper()
	line, err := s.log.Wait(deadline(s.t), n, parts...)
	if err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
	return line
}

// wantLines checks that exactly n lines of the log contain all parts.
func (s *service) wantLines(n int, parts ...string) {
	s.t.Helper()
	if got := s.log.count(parts...); got != n {
		s.t.Errorf("%s has %d lines with %q, want %d:\n%s", s.name, got, parts, n, s.log.tail(20))
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

// serviceLog is the log of a service.
type serviceLog struct{ *harness.Log }

func (l serviceLog) count(parts ...string) int { return l.Count(parts...) }

// tail returns the last n lines, without those about processed or skipped events.
func (l serviceLog) tail(n int) string { return strings.Join(l.Tail(n), "\n") }

// eventually polls f until it returns nil. It is for servers that do not report their
// changes.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	poll(t, 50*time.Millisecond, what, f)
}

func poll(t testing.TB, pause time.Duration, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(pause)
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
