package stack

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// A program that imports this package becomes a guard or an etcd when it is started
// under one of these names: see init.
const (
	guardName = "stack-guard"
	etcdName  = "stack-etcd"
)

// init runs a guard or an etcd, and exits, if the program was started under that name.
// Otherwise it does nothing. Every test binary and the demo thus contain both programs:
// they start their own executable again with another argv[0], as Docker's reexec does,
// and nothing else needs to be built, installed or found. init runs before main and
// before flags are parsed, so the importing program needs no code for it.
func init() {
	switch os.Args[0] {
	case guardName:
		os.Exit(guard(os.Args[1], os.Args[2:]))
	case etcdName:
		os.Exit(serveEtcd(os.Args[1]))
	}
}

// guard runs a server and ensures that it does not outlive the program that started
// the guard, however that program dies. The program holds the other end of the guard's
// standard input. When it dies, or closes its end to kill the server, the guard reads
// EOF and kills the server and all processes that the server has started. The server
// cannot do this itself: it may be paused, and most servers are not our code.
//
// The first line on the guard's standard output is the process group of the server;
// the rest is the server's own output.
func guard(path string, argv []string) (exit int) {
	// The guard ignores signals: only the end of its input makes it kill the server.
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
	syscall.Kill(-group, syscall.SIGKILL) // children that the server has left behind
	return server.ProcessState.ExitCode()
}
