// Package stack runs the real servers of the service, private and throw-away,
// for tests and for the demo: RabbitMQ nodes, etcd members, a statsd sink. It
// is never linked into the service.
//
// Every server is a process of its own, which can be killed, stopped and
// started again on its data. None outlives the program that started it, not
// even if that is killed: between the two stands a child of the same
// executable, which an environment variable tells what it is before main runs,
// and which ends, and ends the server, when the pipe to its standard input
// breaks. (Linux could do that with a parent death signal, macOS cannot.)
package stack

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// childVar holds the JSON of a childSpec in the environment of a child.
const childVar = "STACK_CHILD"

// childSpec is what a child is to do.
type childSpec struct {
	Etcd *etcdSpec // be an etcd member
	Args []string  // run this command
	Env  []string
	Dir  string
	Log  string // where the output goes
}

func init() {
	text, is := os.LookupEnv(childVar)
	if !is {
		return
	}
	os.Unsetenv(childVar)
	// The parent's ctrl-c is the parent's affair.
	signal.Ignore(os.Interrupt)
	var spec childSpec
	err := json.Unmarshal([]byte(text), &spec)
	switch {
	case err != nil:
	case spec.Etcd != nil:
		err = spec.Etcd.run()
	default:
		err = spec.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run runs the command in a process group of its own, says which on standard
// output, and kills the group when standard input ends.
func (s *childSpec) run() error {
	out, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.Env, s.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}()
	cmd.Wait() // how it ended is in its log
	// What it has left of its group goes with it.
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	return nil
}
