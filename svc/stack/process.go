package stack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is a running server and the child that watches it.
type process struct {
	child *exec.Cmd
	stdin io.Closer
	group int // what signals go to: the server's process group, or the child
	ended chan struct{}
}

// start starts a child and waits until it says its first line.
func start(ctx context.Context, spec childSpec) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childVar+"="+string(text))
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr strings.Builder
	child.Stderr = &stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	p := &process{child: child, stdin: stdin, ended: make(chan struct{})}
	said := make(chan error, 1)
	go func() {
		defer close(p.ended)
		lines := bufio.NewReader(stdout)
		_, err := fmt.Fscanln(lines, &p.group)
		said <- err
		io.Copy(io.Discard, lines)
		child.Wait()
	}()
	select {
	case err = <-said:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("start a child process: %w: %s", err, stderr.String())
	}
	return p, nil
}

// signal reaches all processes of the server.
func (p *process) signal(sig syscall.Signal) error {
	return syscall.Kill(-p.group, sig)
}

// kill ends the server at once and waits until it has.
func (p *process) kill() {
	if p.group > 0 {
		p.signal(syscall.SIGKILL)
	}
	p.stdin.Close()
	<-p.ended
}

// wait waits until the server has ended by itself.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until asks ready now and then until it succeeds, the server ends or ctx does.
func (p *process) until(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("the server has ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// freePort returns a TCP port of the loopback interface that nobody listens
// on. It is below the range from which systems take ports for connections, so
// that none takes it before the server does.
func freePort() (int, error) {
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1")
}

// freePorts sets each to a free port.
func freePorts(ports ...*int) (err error) {
	for _, p := range ports {
		if *p, err = freePort(); err != nil {
			return err
		}
	}
	return nil
}

// tail returns the end of a log file, for errors.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
