package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/streamdal/gophercon2021/svc/harness"
	"github.com/streamdal/gophercon2021/svc/stack"
	"golang.org/x/sync/errgroup"
)

// maxStep bounds each step, which should take seconds. It is longer than the time that
// package stack gives a server to start, because publishing waits for the broker.
const maxStep = 3 * time.Minute

// script is one run of a scene. A scene calls its steps without checking for errors: the
// first step that fails ends sceneCtx, and all later steps do nothing.
type script struct {
	*env
	sceneCtx context.Context
	fail     context.CancelCauseFunc
	services []*harness.Process // including those that have ended
	checks   []check
	atEnd    []func()
}

func (e *env) newScript(ctx context.Context) *script {
	s := &script{env: e}
	s.sceneCtx, s.fail = context.WithCancelCause(ctx)
	return s
}

// end kills the processes that the scene has started and closes its receivers.
func (s *script) end() {
	s.fail(nil)
	for _, end := range slices.Backward(s.atEnd) {
		end()
	}
}

// step calls f, with a deadline, unless an earlier step has failed.
func (s *script) step(f func(ctx context.Context) error) {
	if s.sceneCtx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.sceneCtx, maxStep)
	defer cancel()
	if err := f(ctx); err != nil {
		s.fail(err)
	}
}

// say shows a line of narration, and leaves time to read it.
func (s *script) say(format string, args ...any) {
	if s.sceneCtx.Err() != nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	s.status.update(func(v *view) { v.Step = text })
	s.screen.step(text)
	s.wait(500 * time.Millisecond)
}

// countFromHere sets the counters that are shown and checked back to 0.
func (s *script) countFromHere() {
	s.step(func(context.Context) error { s.status.countFromHere(); return nil })
}

// wait gives the audience time to watch. No outcome depends on it.
func (s *script) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.sceneCtx.Done():
	}
}

// start starts a service in a role, with the addresses and vars in its environment, and
// returns when it consumes.
func (s *script) start(role string, vars ...string) (p *harness.Process) {
	s.step(func(ctx context.Context) (err error) {
		cmd := exec.Command(filepath.Join(s.dir, "svc"))
		cmd.Env = s.servers.Env(slices.Concat([]string{"SERVICE_NAME=" + role}, vars, s.opts.vars)...)
		p, _, err = s.launch(ctx, role, cmd, "msg=consuming")
		if p != nil {
			s.services = append(s.services, p)
		}
		return err
	})
	return p
}

// launch starts a process and waits for a line in its log that contains text. The end of
// the scene kills the process. p is nil if the process could not be started.
func (s *script) launch(ctx context.Context, name string, cmd *exec.Cmd, text string) (p *harness.Process, line string, err error) {
	if p, err = harness.Start(name, cmd); err != nil {
		return nil, "", err
	}
	s.atEnd = append(s.atEnd, p.Kill)
	if line, err = p.Log.Wait(ctx, 1, text); err != nil {
		err = fmt.Errorf("start %s: %w", name, err)
	}
	return p, line, err
}

// startBoth starts both services.
func (s *script) startBoth(vars ...string) {
	for _, role := range roles {
		s.start(role, vars...)
	}
}

// kill ends a service with kill -9.
func (s *script) kill(p *harness.Process) {
	s.step(func(context.Context) error { p.Kill(); return nil })
}

// stop stops services at the same time, as ctrl-c does.
func (s *script) stop(services ...*harness.Process) {
	s.step(func(ctx context.Context) error {
		var stopping errgroup.Group
		for _, p := range services {
			stopping.Go(func() error { return p.Stop(ctx) })
		}
		return stopping.Wait()
	})
}

// receive starts a webhook receiver. It runs until the scene has ended.
func (s *script) receive(answer harness.Answer) *harness.Receiver {
	receiver := harness.NewReceiver(answer)
	s.atEnd = append(s.atEnd, receiver.Close)
	return receiver
}

// killServer ends a server with kill -9. restartServer starts it again.
func (s *script) killServer(name string, server *stack.Server) {
	s.step(func(context.Context) error { return server.Kill() })
	s.status.update(func(v *view) { v.Outage = name })
}

func (s *script) restartServer(server *stack.Server) {
	s.step(server.Start)
	s.status.update(func(v *view) { v.Outage = "" })
}
