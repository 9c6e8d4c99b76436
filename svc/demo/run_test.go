package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// limit bounds the time of a test. A run takes about a minute.
const limit = 4 * time.Minute

// demo is a demo that runs in its own process.
type demo struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string   // for its temporary files
	pipe   *os.File // reaches EOF when the demo and all processes that it started have ended
	output *bufio.Scanner
	lines  []string
	stderr bytes.Buffer
}

func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	d := &demo{t: t, cmd: exec.CommandContext(ctx, exe, args...), dir: t.TempDir()}
	// The demo and all processes that it starts inherit the write end of this pipe.
	pipe, inherited, err := os.Pipe()
	must(t, err)
	d.pipe = pipe
	d.cmd.Env = append(os.Environ(), mainVar+"=1", "TMPDIR="+d.dir)
	d.cmd.ExtraFiles = []*os.File{inherited}
	d.cmd.Stderr = &d.stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := d.cmd.StdoutPipe()
	must(t, err)
	must(t, d.cmd.Start())
	inherited.Close()
	d.output = bufio.NewScanner(stdout)
	t.Cleanup(func() {
		d.cmd.Process.Signal(syscall.SIGTERM)
		io.Copy(io.Discard, stdout)
		d.cmd.Wait()
		cancel()
		pipe.Close()
		if t.Failed() {
			t.Logf("the output of the demo:\n%s\n%s", strings.Join(d.lines, "\n"), &d.stderr)
		}
	})
	return d
}

// await reads the output up to a line that matches pattern, and returns the match.
func (d *demo) await(pattern string) []string {
	d.t.Helper()
	wanted := regexp.MustCompile(pattern)
	for d.output.Scan() {
		d.lines = append(d.lines, d.output.Text())
		if match := wanted.FindStringSubmatch(d.output.Text()); match != nil {
			return match
		}
	}
	d.t.Fatalf("the demo has ended without a line like %q", pattern)
	return nil
}

// interrupt does what ctrl-c does on a terminal.
func (d *demo) interrupt() { syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT) }

// wantEnd reads the rest of the output, and checks the exit status and that the demo
// leaves no process and no folder behind.
func (d *demo) wantEnd(status int) {
	d.t.Helper()
	for d.output.Scan() {
		d.lines = append(d.lines, d.output.Text())
	}
	d.cmd.Wait()
	if got := d.cmd.ProcessState.ExitCode(); got != status {
		d.t.Errorf("the exit status is %d (%v), want %d", got, d.cmd.ProcessState, status)
	}
	must(d.t, d.pipe.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.ReadAll(d.pipe); err != nil {
		d.t.Errorf("a process has outlived the demo: %v", err)
	}
	left, err := os.ReadDir(d.dir)
	must(d.t, err)
	if len(left) > 0 {
		d.t.Errorf("%d folders are left behind: %v", len(left), left)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// counters returns the last counters in the output.
func (d *demo) counters() (ends [len(roles)]serviceView) {
	d.t.Helper()
	for i, role := range roles {
		ends[i].Name = role
		lines := regexp.MustCompile(role+` +ok +\d+ +skipped +\d+ +queued`).FindAllString(strings.Join(d.lines, "\n"), -1)
		_, err := fmt.Sscanf(lines[len(lines)-1], role+" ok %d skipped %d queued", &ends[i].OK, &ends[i].Skipped)
		must(d.t, err)
	}
	return ends
}
