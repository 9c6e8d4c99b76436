package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const module = "github.com/streamdal/gophercon2021/"

// Build compiles commands of this module into dir, which must exist. A command is named
// by its folder, such as svc. flags are passed to go build.
func Build(ctx context.Context, dir string, commands []string, flags ...string) error {
	args := append([]string{"build", "-o", dir + "/"}, flags...)
	for _, command := range commands {
		args = append(args, module+command)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	// An interrupted go command removes its temporary files. If it is killed before
	// that, they are left in the caller's folder.
	cmd.Env = append(os.Environ(), "GOTMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Cancel reaches the compilers, too
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", commands, err, bytes.TrimSpace(out))
	}
	return nil
}
