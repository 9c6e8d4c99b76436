// Demo plays the talk's demos, and more, with the real services on private servers,
// and checks the outcome of each scene:
//
//	go run ./svc/demo [-list] [-scene n] [-pause] [-hold] [-compose]
//
//	-list      list the scenes
//	-scene n   play scene n only
//	-pause     wait for Enter before each scene: for a stage
//	-hold      keep everything running at the end, to publish by hand
//	-compose   use the servers of docker-compose.yaml on their default ports, and
//	           watch Graphite; scenes that break a server are left out
//
// RabbitMQ has to be installed, and nothing has to run. While it plays, a page
// on http://localhost:8080, or the next free port, shows what Graphite would.
//
// It exits with 0 when every scene passes, 1 when one fails, 2 when it cannot begin,
// and 130 when it was interrupted. Whichever it is, no process and no
// folder stays behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/streamdal/gophercon2021/svc/harness"
)

// options are what the command line says, and what tests change about a run.
type options struct {
	list, pause, hold, compose bool
	scene                      int // 0: all of them

	composeServers harness.Addresses
	vars           []string // of all services, last: with them a test makes a scene fail
}

func main() {
	opts := options{composeServers: composeServers}
	flag.BoolVar(&opts.list, "list", false, "list the scenes")
	flag.IntVar(&opts.scene, "scene", 0, "play only the scene of this `number`")
	flag.BoolVar(&opts.pause, "pause", false, "wait for Enter before each scene")
	flag.BoolVar(&opts.hold, "hold", false, "keep everything running at the end, to publish by hand")
	flag.BoolVar(&opts.compose, "compose", false, "use the servers of docker-compose.yaml on their default ports")
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
		list(os.Stdout)
		return
	}

	// The signals stay ours to the end: a second ctrl-c must not cut the
	// cleaning up short, which is quick. A reader of our output that goes away
	// (SIGPIPE) ends the demo in the same way.
	ctx, cancel := signal.NotifyContext(context.Background(),
		os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer cancel()
	os.Exit(run(ctx, opts, newScreen(os.Stdout), os.Stdin))
}
