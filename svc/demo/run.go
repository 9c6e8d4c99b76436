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

// Exit statuses.
const (
	allPassed     = 0
	oneFailed     = 1
	cannotBegin   = 2
	isInterrupted = 130 // as in shells after SIGINT
)

var (
	errFailed = errors.New("a scene failed")    // the screen shows the reason
	errHeld   = errors.New("all scenes passed") // ctrl-c ended -hold
)

// run runs the whole demo and returns its exit status.
func run(ctx context.Context, opts options, screen *screen, in io.Reader) int {
	began := time.Now()
	screen.title("Reliability Nirvana: the demo")
	screen.note("Lines with $ show how to do the same by hand, with docker compose and plumber.")

	s := &env{opts: opts, screen: screen}
	err := s.open(ctx)
	if err == nil {
		err = s.play(ctx, began, lines(in))
	}
	interrupted := ctx.Err() != nil
	if interrupted {
		screen.note("Stopping everything ...")
	}
	held := errors.Is(err, errHeld)
	if closed := s.close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", closed))
	}
	switch {
	case held, err == nil && !interrupted:
		return allPassed
	case interrupted:
		return isInterrupted
	case errors.Is(err, errFailed):
		return oneFailed
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.Is(err, stack.ErrNoRabbit) {
		return cannotBegin
	}
	return oneFailed
}

// play plays the scenes that were asked for.
func (s *env) play(ctx context.Context, began time.Time, enter <-chan struct{}) error {
	played := 0
	for i, scene := range scenes {
		number := i + 1
		if s.opts.scene != 0 && s.opts.scene != number {
			continue
		}
		if s.opts.pause {
			s.screen.prompt(fmt.Sprintf("Enter plays scene %d: %s ", number, scene.title))
			select {
			case <-enter:
			case <-ctx.Done():
				return ctx.Err()
			}
			s.screen.count(s.status.current)
		}
		if err := s.playScene(ctx, number, scene); err != nil {
			return err
		}
		played++
	}
	s.screen.good(fmt.Sprintf("%d of %d scenes passed in %.0f s.", played, len(scenes), time.Since(began).Seconds()))
	if !s.opts.hold {
		return nil
	}
	return s.hold(ctx)
}

// playScene plays one scene, waits until its services have stopped, and reports
// its checks.
func (s *env) playScene(ctx context.Context, number int, scene scene) error {
	began := time.Now()
	s.status.begin(number, scene)
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

// lines returns a channel that receives a value for each line of input. It is closed at
// the end of the input, so that -pause does not wait for an Enter that cannot come.
func lines(in io.Reader) <-chan struct{} {
	enter := make(chan struct{})
	go func() {
		// Nothing waits for this goroutine, because reading a terminal cannot be stopped.
		defer close(enter)
		for input := bufio.NewScanner(in); input.Scan(); {
			enter <- struct{}{}
		}
	}()
	return enter
}

// list writes the table of scenes.
func list(w io.Writer) {
	for i, scene := range scenes {
		fmt.Fprintf(w, "%d  %-20s  %s\n", i+1, scene.title, scene.promise)
	}
}
