package harness

import (
	"context"
	"fmt"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a running command in a process group of its own: ctrl-c on the
// terminal does not reach it, and a signal reaches its children too.
type Process struct {
	Name string // used in errors
	Log  *Log   // standard output and standard error, see [Start]

	cmd    *exec.Cmd
	exited chan struct{}
	ending atomic.Bool // Stop or Kill was called
}

// Start starts cmd. Its output goes to Log unless cmd.Stderr is set. The caller
// must end the process with Stop or Kill.
func Start(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, Log: newLog(), cmd: cmd, exited: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stdout, cmd.Stderr = p.Log, p.Log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // children may keep the output open
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.exited)
		cmd.Wait() // the status is in cmd.ProcessState
		p.Log.end()
	}()
	return p, nil
}

// Exited is closed when the process has exited.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends a signal to the process and its children.
func (p *Process) Signal(sig syscall.Signal) { syscall.Kill(-p.cmd.Process.Pid, sig) }

// Kill ends the process with SIGKILL, as a crash does, and returns when it has exited.
func (p *Process) Kill() {
	p.ending.Store(true)
	p.Signal(syscall.SIGKILL)
	<-p.exited
}

// Stop sends SIGTERM and waits for exit status 0. It returns nil at once if an earlier
// Stop or Kill has ended the process, and an error if the process has ended by itself.
func (p *Process) Stop(ctx context.Context) error {
	ended := false
	select {
	case <-p.exited:
		ended = true
	default:
	}
	switch ending := p.ending.Swap(true); {
	case ended && ending:
		return nil
	case ended:
		return fmt.Errorf("%s ended by itself: %v", p.Name, p.cmd.ProcessState)
	}
	p.Signal(syscall.SIGTERM)
	return p.WaitExit(ctx, 0)
}

// WaitExit waits until the process has exited, and returns an error if its exit
// status is not the wanted one.
func (p *Process) WaitExit(ctx context.Context, want int) error {
	select {
	case <-p.exited:
	case <-ctx.Done():
		return fmt.Errorf("%s does not stop: %w", p.Name, ctx.Err())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("%s: exit status %d (%v), want %d", p.Name, got, p.cmd.ProcessState, want)
	}
	return nil
}
