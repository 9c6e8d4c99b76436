// Demo plays the talk's demos and more scenes with the real services on private servers,
// and checks the outcome of each scene:
//
//	go run ./svc/demo [-list] [-scene n] [-pause] [-hold]
//
//	-list      list the scenes
//	-scene n   play scene n only
//	-pause     wait for Enter before each scene, for a live talk
//	-hold      keep everything running at the end, to publish by hand
//
// RabbitMQ must be installed; nothing needs to be running. While the demo plays, a page
// on http://localhost:8080, or on another port if that one is in use, shows the curves
// that Graphite would show.
//
// The demo exits with 0 if every scene passes, 1 if one fails, 2 if it cannot begin, and
// 130 if it is interrupted. In every case it leaves no process and no folder behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// options are the command-line flags, and settings that only tests change.
type options struct {
	list, pause, hold bool
	scene             int // 0: all of them

	vars []string // last variables of all services; a test makes a scene fail with them
}

func main() {
	var opts options
	flag.BoolVar(&opts.list, "list", false, "list the scenes")
	flag.IntVar(&opts.scene, "scene", 0, "play only the scene of this `number`")
	flag.BoolVar(&opts.pause, "pause", false, "wait for Enter before each scene")
	flag.BoolVar(&opts.hold, "hold", false, "keep everything running at the end, to publish by hand")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./svc/demo [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	case opts.scene < 0 || opts.scene > len(scenes):
		fmt.Fprintf(os.Stderr, "demo: -scene must be 1 to %d (-list shows them)\n", len(scenes))
		os.Exit(2)
	}
	if opts.list {
		for i, scene := range scenes {
			fmt.Printf("%d  %-20s  %s\n", i+1, scene.title, scene.promise)
		}
		return
	}

	// The demo handles signals until it exits, so that a second ctrl-c does not
	// interrupt the cleanup, which is quick. SIGPIPE, from a closed reader of the
	// output, ends the demo in the same way.
	ctx, cancel := signal.NotifyContext(context.Background(),
		os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer cancel()
	os.Exit(run(ctx, opts, newScreen(os.Stdout), os.Stdin))
}
