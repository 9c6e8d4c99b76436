package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	"golang.org/x/sync/errgroup"
)

// maxStep bounds each step, which should take seconds. It is longer than the time that
// package stack gives a server to start, because publishing waits for the broker.
const maxStep = 3 * time.Minute

// script is one run of a scene. A scene calls its steps without checking for errors: the
// first step that fails ends sceneCtx, and all later steps do nothing. What a scene has
// started and has not ended runs until the end of the demo.
type script struct {
	*env
	sceneCtx context.Context
	fail     context.CancelCauseFunc
	services []*harness.Process // including those that have ended
	checks   []check
}

func (e *env) newScript(ctx context.Context) *script {
	s := &script{env: e}
	s.sceneCtx, s.fail = context.WithCancelCause(ctx)
	return s
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

// wait gives the audience time to watch. No outcome depends on it.
func (s *script) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.sceneCtx.Done():
	}
}

// start starts a service in a role, with the addresses and vars in its environment, and
// returns when it consumes.
func (s *script) start(role string, vars ...string) *harness.Process {
	cmd := exec.Command(filepath.Join(s.dir, "svc"))
	cmd.Env = s.addresses.Env(slices.Concat([]string{"SERVICE_NAME=" + role}, vars, s.opts.vars)...)
	service, _ := s.launch(role, cmd, "msg=consuming")
	if service != nil {
		s.services = append(s.services, service)
	}
	return service
}

// startBoth starts both services.
func (s *script) startBoth(vars ...string) {
	for _, role := range roles {
		s.start(role, vars...)
	}
}

// launch starts a process and returns a line in its log that contains text. The process
// is nil if it could not be started.
func (s *script) launch(name string, cmd *exec.Cmd, text string) (p *harness.Process, line string) {
	s.step(func(ctx context.Context) (err error) {
		if p, err = harness.Start(name, cmd); err != nil {
			return err
		}
		s.closeLater(func() error { p.Kill(); return nil })
		if line, err = p.Log.Wait(ctx, 1, text); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		return nil
	})
	return p, line
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

// kill ends a service with kill -9, and returns how many events it had recorded, which are
// in its log.
func (s *script) kill(p *harness.Process) (recorded int) {
	s.step(func(context.Context) error {
		p.Kill()
		recorded = p.Log.Count("msg=processed")
		return nil
	})
	return recorded
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

// receive starts a webhook receiver.
func (s *script) receive(answer harness.Answer) *harness.Receiver {
	receiver := harness.NewReceiver(answer)
	s.closeLater(func() error { receiver.Close(); return nil })
	return receiver
}
