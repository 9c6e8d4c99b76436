package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// startTimeout is far more than a server needs, so that tests do not fail on a busy
// machine.
const startTimeout = 3 * time.Minute

// Server is the process of a RabbitMQ node or an etcd member. It can be
// broken in the ways that processes break. Its methods may be called from
// several goroutines at once.
type Server struct {
	name    string                                // used in errors
	dir     string                                // its folder, with all its files
	log     *os.File                              // its output
	command *exec.Cmd                             // path, arguments and environment
	ready   func(context.Context, *process) error // returns when it serves
	owned   []io.Closer                           // closed after the process has ended, last first

	mu     sync.Mutex
	proc   *process // nil before the first start
	closed bool
}

// newServer makes a server with a folder and a log. The folder must be new or empty,
// because Close removes it.
func newServer(name, dir string) (*Server, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("folder %s is not empty", dir)
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &Server{name: name, dir: dir, log: log, owned: []io.Closer{log}}, nil
}

// Start starts the server and returns when it serves. A server that has run before
// keeps its data and ports. Start fails if the server is running.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p, err := s.spawn()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	if err := s.ready(ctx, p); err != nil {
		err = fmt.Errorf("start %s: %w; the end of its log:\n%s", s.name, err, s.logTail())
		return errors.Join(err, p.kill())
	}
	return nil
}

func (s *Server) spawn() (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	if s.running() {
		return nil, errors.New("it runs already")
	}
	p, err := start(&exec.Cmd{
		Path: s.command.Path, Args: s.command.Args, Env: s.command.Env,
		Dir: s.dir, Stdout: s.log, Stderr: s.log,
	})
	if err != nil {
		return nil, err
	}
	s.proc = p
	return p, nil
}

func (s *Server) running() bool {
	if s.proc == nil {
		return false
	}
	select {
	case <-s.proc.gone:
		return false
	default:
		return true
	}
}

// Kill ends the server with SIGKILL, even if it is paused, and returns when it has ended:
// its ports are closed, and its data is as after a crash. Kill does nothing if the
// server is not running.
func (s *Server) Kill() error {
	if s.process() == nil {
		return nil
	}
	return s.do("kill", (*process).kill)
}

// Stop shuts the server down with SIGTERM and returns when it has ended. A paused server
// must be resumed first.
func (s *Server) Stop(ctx context.Context) error {
	return s.do("stop", func(p *process) error {
		if err := p.signal(syscall.SIGTERM); err != nil {
			return err
		}
		return p.wait(ctx)
	})
}

// Pause stops the server with SIGSTOP and returns when all its threads have stopped. Its
// connections stay open and it does not answer, as when a machine hangs or a network
// drops packets.
func (s *Server) Pause() error { return s.do("pause", (*process).pause) }

// Resume lets a paused server continue.
func (s *Server) Resume() error {
	return s.do("resume", func(p *process) error { return p.signal(syscall.SIGCONT) })
}

// do calls f with the process, which may have ended.
func (s *Server) do(what string, f func(*process) error) error {
	err := os.ErrProcessDone
	if p := s.process(); p != nil {
		err = f(p)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, s.name, err)
	}
	return nil
}

// Close kills the server and removes its folder. A second call does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.proc != nil {
		errs = append(errs, s.proc.kill())
	}
	for i := len(s.owned) - 1; i >= 0; i-- {
		errs = append(errs, s.owned[i].Close())
	}
	errs = append(errs, os.RemoveAll(s.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}

func (s *Server) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// logTail returns the last 4 KiB of the log.
func (s *Server) logTail() string {
	log, err := os.ReadFile(s.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(log[max(0, len(log)-4096):]))
}
