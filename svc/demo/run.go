package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/streamdal/gophercon2021/svc/stack"
)

// errFailed is returned for a scene that did not pass. The screen shows the reason.
var errFailed = errors.New("a scene failed")

// run runs the whole demo and returns its exit status.
func run(ctx context.Context, opts options, screen *screen, in io.Reader) int {
	began := time.Now()
	screen.title("Reliability Nirvana: the demo")
	screen.note("Lines with $ show how to do the same by hand, with docker compose and plumber.")

	s := &env{opts: opts, screen: screen, input: bufio.NewReader(in)}
	err := s.open(ctx)
	if err == nil {
		err = s.play(ctx, began)
	}
	if ctx.Err() != nil {
		screen.note("Stopping everything ...")
	}
	if closed := s.close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", closed))
	}

	if err != nil && ctx.Err() == nil && !errors.Is(err, errFailed) {
		fmt.Fprintln(os.Stderr, err)
	}
	return exitStatus(ctx, err)
}

// exitStatus returns the exit status of a run that ended with err.
func exitStatus(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return 130 // as in shells after SIGINT
	case errors.Is(err, stack.ErrNoRabbit):
		return 2
	}
	return 1
}

// play plays the scenes that were asked for. With -hold it then waits for ctrl-c, which
// is not an error.
func (s *env) play(ctx context.Context, began time.Time) error {
	played := 0
	for i, scene := range scenes {
		number := i + 1
		if s.opts.scene != 0 && s.opts.scene != number {
			continue
		}
		if s.opts.pause {
			if played == 0 {
				s.status.update(func(v *view) { v.Title, v.Text = "Ready", "Two services, one broker, one etcd." })
			}
			s.screen.prompt(fmt.Sprintf("Enter plays scene %d: %s ", number, scene.title))
			if err := s.awaitEnter(ctx); err != nil {
				return err
			}
			s.screen.count(s.status.current)
		}
		if err := s.playScene(ctx, number, scene); err != nil {
			return err
		}
		played++
	}
	if s.opts.scene == 0 {
		s.screen.good(fmt.Sprintf("All %d scenes passed in %.0f s.", played, time.Since(began).Seconds()))
	}
	if s.opts.hold {
		return s.hold(ctx)
	}
	return nil
}

// awaitEnter waits for a line of input, or for the end of the input.
func (s *env) awaitEnter(ctx context.Context) error {
	entered := make(chan struct{})
	go func() { // ctx does not stop it, because reading a terminal cannot be stopped
		defer close(entered)
		s.input.ReadString('\n')
	}()
	select {
	case <-entered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// playScene plays one scene, waits until its services have stopped, and reports
// its checks.
func (s *env) playScene(ctx context.Context, number int, scene scene) error {
	began := time.Now()
	s.status.begin(number)
	s.screen.scene(number, scene)
	p := s.newScript(ctx)
	defer p.end()
	scene.run(p)
	p.stop(p.services...)
	p.expectEmptyQueues()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := context.Cause(p.sceneCtx)
	passed := err == nil && !slices.ContainsFunc(p.checks, check.failed)
	s.status.finish(number, passed)
	s.screen.checks(p.checks)
	if err != nil {
		s.screen.bad(fmt.Sprintf("Scene %d broke off: %v", number, err))
	}
	if !passed {
		s.screen.bad(fmt.Sprintf("Scene %d failed: %s.", number, scene.title))
		s.screen.logs(p.services)
		return errFailed
	}
	s.screen.good(fmt.Sprintf("Scene %d passed (%.1f s).", number, time.Since(began).Seconds()))
	return nil
}

// list writes the table of scenes.
func list(w io.Writer) {
	for i, scene := range scenes {
		fmt.Fprintf(w, "%d  %-20s  %s\n", i+1, scene.title, scene.promise)
	}
}
