package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// run runs the whole demo and returns its exit status.
func run(ctx context.Context, opts options, screen *screen, in io.Reader) (status int) {
	began := time.Now()
	screen.title("Reliability Nirvana: the demo")
	screen.note("Lines with $ show how to do the same by hand, with docker compose and plumber.")

	e := &env{opts: opts, screen: screen, input: bufio.NewReader(in)}
	if err := e.open(ctx); err != nil {
		status = 2
		if ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, err)
		}
	} else if !e.play(ctx, began) {
		status = 1
	}
	if ctx.Err() != nil {
		screen.note("Stopping everything ...")
		if status != 0 {
			status = 130 // as in shells after SIGINT
		}
	}
	if err := e.close(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
		status = max(status, 1)
	}
	return status
}

// play plays the scenes that were asked for, and reports whether they passed. With -hold
// it then waits for ctrl-c.
func (e *env) play(ctx context.Context, began time.Time) (passed bool) {
	for i, scene := range scenes {
		number := i + 1
		if e.opts.scene != 0 && e.opts.scene != number {
			continue
		}
		if e.opts.pause && !e.pause(ctx, number, scene) {
			return false
		}
		if !e.playScene(ctx, number, scene) {
			return false
		}
	}
	if e.opts.scene == 0 {
		e.screen.good(fmt.Sprintf("All %d scenes passed in %.0f s.", len(scenes), time.Since(began).Seconds()))
	}
	return !e.opts.hold || e.hold(ctx)
}

// pause waits for a line of input, or for the end of the input. It returns false if ctx
// ends before.
func (e *env) pause(ctx context.Context, number int, scene scene) bool {
	e.screen.prompt(fmt.Sprintf("Enter plays scene %d: %s ", number, scene.title))
	entered := make(chan struct{})
	go func() { // ctx does not stop it, because reading a terminal cannot be stopped
		defer close(entered)
		e.input.ReadString('\n')
	}()
	select {
	case <-entered:
		e.screen.count(e.status.current)
		return true
	case <-ctx.Done():
		return false
	}
}

// playScene plays one scene, waits until its services have stopped, and shows its
// checks.
func (e *env) playScene(ctx context.Context, number int, scene scene) (passed bool) {
	began := time.Now()
	e.status.begin(number)
	e.screen.scene(number, scene)
	s := e.newScript(ctx)
	defer s.fail(nil)
	scene.run(s)
	s.stop(s.services...)
	s.expectEmptyQueues()
	if ctx.Err() != nil {
		return false
	}

	err := context.Cause(s.sceneCtx)
	passed = err == nil && !slices.ContainsFunc(s.checks, check.failed)
	e.status.finish(number, passed)
	e.screen.checks(s.checks)
	if passed {
		e.screen.good(fmt.Sprintf("Scene %d passed (%.1f s).", number, time.Since(began).Seconds()))
		return true
	}
	if err != nil {
		e.screen.bad(fmt.Sprintf("Scene %d broke off: %v", number, err))
	}
	e.screen.bad(fmt.Sprintf("Scene %d failed: %s.", number, scene.title))
	e.screen.logs(s.services)
	return false
}

// hold keeps both services running until ctrl-c, which is no failure. The counters
// continue from the last scene.
func (e *env) hold(ctx context.Context) bool {
	s := e.newScript(ctx)
	defer s.fail(nil)
	s.startBoth("ENABLE_ETCD=true")
	if err := context.Cause(s.sceneCtx); err != nil {
		e.screen.bad(err.Error())
		return false
	}
	e.status.update(func(v *view) {
		v.Number, v.Title, v.Step = 0, "Over to you", "Ctrl-c in the terminal ends it."
		v.Text = "Everything keeps running, with ENABLE_ETCD=true: publish by hand, and watch."
	})
	e.screen.title("Everything keeps running until ctrl-c. Publish by hand, and watch:")
	e.screen.write(e.screen.prompts([]string{
		strings.Replace(plumber("by-hand"), " --", " --address "+e.addresses.AMQP+" \\\n    --", 1),
		"AMQP_URL=" + e.addresses.AMQP + " go run ./example1",
	})...)
	e.screen.write(
		"  page      "+e.pageURL,
		"  RabbitMQ  "+e.addresses.AMQP,
		"  etcd      "+e.addresses.Etcd,
		"  statsd    "+e.addresses.Statsd,
	)
	<-ctx.Done()
	return true
}
