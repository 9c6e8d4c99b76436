package stack

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// A program that imports this package can be started under these names, and is
// then something else: see init.
const (
	guardName = "stack-guard"
	etcdName  = "stack-etcd"
)

// init turns the running program into a guard or an etcd when it was started
// under that name, and in all other cases does nothing. It never returns to
// main then. This is how any test binary, and the demo, has these programs with
// it and nothing else needs to be built, installed or found: start the own
// executable again with another argv[0] (Docker's reexec does the same). An
// init runs before main and before flags are parsed, so the program above
// need not know.
func init() {
	switch os.Args[0] {
	case guardName:
		os.Exit(guard(os.Args[1], os.Args[2:]))
	case etcdName:
		os.Exit(serveEtcd(os.Args[1]))
	}
}

// guard runs a server and sees to it that it does not outlive the program that
// wanted it, whatever that one dies of. That program holds the other end of
// our standard input: when it dies, or closes its end to have the server
// killed, the kernel ends our input, and the server dies with everything it
// has started. The server itself could not be trusted with this: it may be
// paused, or not ours to change.
//
// The first line on our standard output is the process group of the server;
// the rest is the server's own output.
func guard(path string, argv []string) (exit int) {
	// Our end is the end of the input, and nothing before.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	server := &exec.Cmd{
		Path:        path,
		Args:        argv,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if err := server.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	group := server.Process.Pid
	fmt.Println(group)

	go func() {
		io.Copy(io.Discard, os.Stdin)
		syscall.Kill(-group, syscall.SIGKILL)
	}()
	server.Wait()
	syscall.Kill(-group, syscall.SIGKILL) // what it has left behind
	return server.ProcessState.ExitCode()
}
