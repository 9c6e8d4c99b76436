package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxWait is how long the demo waits for what should take a moment.
const maxWait = 20 * time.Second

// service is one process of svc.
type service struct {
	name    string
	cmd     *exec.Cmd
	log     *logTail
	exited  chan struct{}
	ordered bool // that it ends is what the scene wants
}

// start runs a service in a role, with these variables besides the addresses,
// and returns when it consumes.
func (s *env) start(ctx context.Context, role string, vars ...string) (*service, error) {
	p := &service{name: role, log: newLogTail(), exited: make(chan struct{})}
	p.cmd = exec.Command(s.bin)
	p.cmd.Env = append(append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"AMQP_URL=" + s.amqpURL, "ETCD_ENDPOINTS=" + s.etcdAt, "STATSD_ADDR=" + s.statsd.Addr(),
		"SERVICE_NAME=" + role,
	}, vars...), s.opts.vars...)
	p.cmd.Stderr = p.log
	// A group of its own: ctrl-c is the demo's to act on.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	s.services = append(s.services, p)
	go func() {
		defer close(p.exited)
		p.cmd.Wait() // the status is in ProcessState
	}()
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	select {
	case <-p.log.consuming:
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("start %s: it ended: %v", role, p.cmd.ProcessState)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait until %s consumes: %w", role, ctx.Err())
	}
}

// stop ends the service as ctrl-c does; it has to exit with 0.
func (p *service) stop(ctx context.Context) error {
	p.ordered = true
	p.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	select {
	case <-p.exited:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("stop %s: it ended with %v", p.name, p.cmd.ProcessState)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", p.name, ctx.Err())
	}
}

// kill ends the service as a crash does.
func (p *service) kill() {
	p.ordered = true
	p.cmd.Process.Kill()
	<-p.exited
}

// stopAll stops all services that run, at once. One that has ended by itself is
// an error.
func (s *env) stopAll(ctx context.Context) error {
	errs := make([]error, len(s.services))
	var stopping sync.WaitGroup
	for i, p := range s.services {
		select {
		case <-p.exited:
			if !p.ordered {
				errs[i] = fmt.Errorf("%s ended by itself: %v", p.name, p.cmd.ProcessState)
				p.ordered = true
			}
		default:
			stopping.Go(func() { errs[i] = p.stop(ctx) })
		}
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// logTails returns the end of the log of each service of the scene.
func (s *env) logTails() []string {
	var lines []string
	for _, p := range s.services {
		for _, line := range p.log.last() {
			lines = append(lines, p.name+": "+line)
		}
	}
	return lines
}

// logTail keeps the last lines of a log, without those about an event that went
// well, and knows when the service has begun to consume.
type logTail struct {
	consuming chan struct{}

	mu      sync.Mutex
	partial string
	lines   []string
	begun   bool
}

const tailLines = 6

func newLogTail() *logTail { return &logTail{consuming: make(chan struct{})} }

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial += string(p)
	for {
		line, rest, whole := strings.Cut(l.partial, "\n")
		if !whole {
			return len(p), nil
		}
		l.partial = rest
		if strings.Contains(line, "msg=processed") || strings.Contains(line, "msg=skipped") {
			continue
		}
		if strings.Contains(line, "msg=consuming") && !l.begun {
			l.begun = true
			close(l.consuming)
		}
		l.lines = append(l.lines[max(0, len(l.lines)-tailLines+1):], line)
	}
}

func (l *logTail) last() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}
