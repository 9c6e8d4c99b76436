package stack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a command that runs under a guard.
type process struct {
	guard io.Closer     // standard input of the guard: closing it kills the command
	group int           // process group of the command
	spoke chan struct{} // closed at the first byte that the command writes to its standard output
	gone  chan struct{} // closed when the command, its children and the guard have ended
	err   error         // the reason of the end, nil for status 0; valid once gone is closed
}

// start runs cmd under a guard. The caller must kill the process or
// wait until it is gone.
func start(cmd *exec.Cmd) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own executable: %w", err)
	}
	out := cmd.Stdout
	guarded := &exec.Cmd{
		Path:   exe,
		Args:   append([]string{guardName, cmd.Path}, cmd.Args...),
		Env:    cmd.Env,
		Dir:    cmd.Dir,
		Stderr: cmd.Stderr,
		// Ctrl-C on a terminal does not reach this process group, so that a
		// program can shut down in its own order while its servers run.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	stdin, err := guarded.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := guarded.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := guarded.Start(); err != nil {
		return nil, err
	}
	output := bufio.NewReader(stdout)
	line, _ := output.ReadString('\n')
	group, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil { // the guard has printed the reason on standard error
		stdin.Close()
		return nil, fmt.Errorf("guard of %s did not start it: %w", cmd.Path, guarded.Wait())
	}
	p := &process{guard: stdin, group: group, spoke: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		defer close(p.gone)
		if _, err := output.Peek(1); err == nil {
			close(p.spoke)
		}
		// The output ends when all processes that inherited it have ended: the
		// command and its children, and not only the guard.
		io.Copy(out, output)
		p.err = guarded.Wait()
	}()
	return p, nil
}

// killTimeout bounds the time that the kernel takes to remove a killed process, or to
// stop a process.
const killTimeout = 10 * time.Second

// kill ends the command and its children by SIGKILL and waits until they are gone.
func (p *process) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	p.guard.Close()
	return p.wait(ctx)
}

// signal sends a signal to the command and its children.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.gone:
		return os.ErrProcessDone
	default:
		return syscall.Kill(-p.group, sig)
	}
}

// pause sends SIGSTOP and waits until all threads have stopped: a thread on another
// processor continues, and may answer, until the kernel interrupts it.
func (p *process) pause() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for end := time.Now().Add(killTimeout); !stopped(p.group); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("it does not stop")
		}
	}
	return nil
}

// ended returns the error of a process that has ended too early.
func (p *process) ended() error {
	if p.err == nil {
		return errors.New("it ended")
	}
	return fmt.Errorf("it ended: %w", p.err)
}

// poll calls f ten times a second until it succeeds.
func (p *process) poll(ctx context.Context, f func(context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.gone:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
