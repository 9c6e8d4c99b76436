package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// mainVar names the environment variable that makes this test binary run the demo.
const mainVar = "DEMO_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVar) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// startsServers skips a test with -short, and makes it parallel.
func startsServers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it starts servers")
	}
	t.Parallel()
}

// The whole demo passes when it is run from the command line, and a browser shows its
// page.
func TestRun(t *testing.T) {
	startsServers(t)
	began := time.Now()
	d := startDemo(t, "-hold")
	d.await("Reliability Nirvana")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the first output took %v", took)
	}
	page := d.await("Live page: (.*)")[1]
	d.await("The service is built|is ready")
	look := openBrowser(t, page)
	for number := range len(scenes) {
		d.await(fmt.Sprintf("Scene %d of %d", number+1, len(scenes)))
		if number+1 == 6 {
			look.saves("DEMO_SCREENSHOT", "3,000 messages")
		}
		d.await(fmt.Sprintf("^Scene %d passed", number+1))
	}
	t.Log(d.await("All 7 scenes passed in .*")[0])
	amqpURL := d.await("^  RabbitMQ +(amqp.*)")[1]
	look.wants(amqpURL, d.counters())

	d.interrupt()
	d.wantEnd(0)
	for _, line := range d.lines {
		if n := utf8.RuneCountInString(line); n > columns || strings.Contains(line, "\x1b") {
			t.Errorf("a line has %d columns or an escape sequence: %q", n, line)
		}
	}
	if d.stderr.Len() > 0 {
		t.Errorf("standard error is not empty: %s", &d.stderr)
	}
}

// Ctrl-c ends the demo without leaving a process or a folder behind.
func TestInterrupt(t *testing.T) {
	startsServers(t)
	for name, at := range map[string]string{
		"starting":    "etcd is ready",
		"in mid-work": "kill -9 of etcd",
	} {
		t.Run(name, func(t *testing.T) {
			d := startDemo(t, "-scene", "7")
			d.await(at)
			d.interrupt()
			d.interrupt() // a second one changes nothing
			d.wantEnd(130)
		})
	}
}

// A scene whose checks fail ends the run. The output shows the wrong numbers.
func TestSceneFails(t *testing.T) {
	startsServers(t)
	wantFailure(t, options{scene: 3, vars: []string{"ENABLE_ETCD=false"}},
		"✗ orders ok, with etcd: 10, want 1", "✗ orders skipped, with etcd: 0, want 9",
		"✗ notify ok, restarted: 10, want 0", "Scene 3 failed: Idempotency.", "orders: time=")
}

// A scene ends at the first step that fails. The output shows the end of the services'
// logs. -pause does not wait for an Enter that cannot come.
func TestBreaksOff(t *testing.T) {
	startsServers(t)
	out := wantFailure(t, options{scene: 1, pause: true, vars: []string{"PREFETCH=0"}},
		"Enter plays scene 1: Consume and produce",
		"Scene 1 broke off: start orders: it ended with 0 of 1 lines", "Scene 1 failed: Consume and produce.", `orders: PREFETCH="0"`)
	if strings.Contains(out, "> One event") || strings.Contains(out, "✗") {
		t.Errorf("the scene went on:\n%s", out)
	}
}

// wantFailure runs the demo in this process, with options that main does not offer. It
// checks that a scene fails and that the output contains some texts.
func wantFailure(t *testing.T, opts options, wants ...string) (output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	if status := run(ctx, opts, &screen{out: &out}, strings.NewReader("")); status != 1 {
		t.Errorf("the exit status is %d, want 1", status)
	}
	for _, want := range wants {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	return out.String()
}

func TestCannotBegin(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	if status := run(t.Context(), options{}, &screen{out: io.Discard}, strings.NewReader("")); status != 2 {
		t.Errorf("the exit status is %d, want 2", status)
	}
}

func TestCommandLine(t *testing.T) {
	d := startDemo(t, "-list")
	for _, scene := range scenes {
		d.await(regexp.QuoteMeta(scene.title) + " +" + regexp.QuoteMeta(scene.promise))
	}
	d.wantEnd(0)
	for _, args := range [][]string{{"-scene", "8"}, {"-scene", "-1"}, {"-nonsense"}, {"5"}} {
		startDemo(t, args...).wantEnd(2)
	}
}
