package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// fixture is an etcd, on which replicas of orders run.
type fixture struct {
	t    *testing.T
	etcd *stack.Etcd
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	server, err := stack.StartEtcd(t.Context(), t.TempDir(), stack.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return &fixture{t, server}
}

// replica is the claims of a running process.
type replica struct {
	*claim.Etcd
	t    *testing.T
	stop func()
}

func (f *fixture) start() *replica {
	f.t.Helper()
	raw, err := f.etcd.Client()
	if err != nil {
		f.t.Fatal(err)
	}
	client := etcd.New(raw, slog.New(slog.DiscardHandler))
	r := &replica{t: f.t, Etcd: claim.NewEtcd(client, claim.Options{
		Role: "orders", TTL: 5 * time.Second, Window: time.Hour, MaxIDs: 1000, CloseTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
	})}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.Load(ctx); err != nil {
		f.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		client.Close()
	})
	f.t.Cleanup(r.stop)
	return r
}

// restart stops a process, and starts another.
func (f *fixture) restart(r *replica) *replica {
	r.stop()
	return f.start()
}

// process processes an id, which must not be done, as soon as the process sees that.
func (r *replica) process(id string) {
	r.t.Helper()
	if err := r.Complete(r.claim(id)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replica) claim(id string) *claim.Claim {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for {
		c, err := r.Claim(ctx, id)
		if err == nil {
			return c
		}
		if !errors.Is(err, claim.ErrDone) || ctx.Err() != nil {
			r.t.Fatalf("claim of %s: %v", id, err)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (r *replica) mustKnow(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		if c, err := r.Claim(r.t.Context(), id); !errors.Is(err, claim.ErrDone) {
			r.t.Errorf("claim of %s: %+v, %v, want ErrDone", id, c, err)
		}
	}
}

// ids runs the command.
func (f *fixture) ids(args ...string) (status int, out, errOut string) {
	f.t.Helper()
	var o, e strings.Builder
	status = run(f.t.Context(), args, []string{"ETCD_ENDPOINTS=" + f.etcd.Endpoint()}, time.Minute, &o, &e)
	return status, o.String(), e.String()
}

// mustSay runs the command and compares the first two words of each line.
func (f *fixture) mustSay(args string, want ...string) (out string) {
	f.t.Helper()
	status, out, errOut := f.ids(strings.Fields(args)...)
	var said []string
	for line := range strings.Lines(out) {
		said = append(said, strings.Join(strings.Fields(line)[:2], " "))
	}
	if status != 0 || !slices.Equal(said, want) {
		f.t.Errorf("ids %s: status %d, %q %s, want %q", args, status, said, errOut, want)
	}
	return out
}

// A forgotten id is processed again by any replica, also after restarts, and no other id of its
// record is.
func TestForget(t *testing.T) {
	f := newFixture(t)
	a, b := f.start(), f.start()
	for _, id := range []string{"7", "8", "9"} { // in one record
		a.process(id)
	}
	claimed := b.claim("10")
	if out := f.mustSay("-role orders 11 9 10 7 9", "11 unknown", "9 done", "10 claimed", "7 done", "9 done"); !strings.Contains(out, " pid: ") || !strings.Contains(out, "1h") {
		t.Errorf("the answer is %s", out)
	}
	f.mustSay("-role orders -forget 7 10 11", "7 forgotten", "10 claimed", "11 unknown")
	f.mustSay("-role orders -forget 7", "7 unknown")
	if err := b.Complete(claimed); err != nil {
		t.Error(err)
	}
	b.process("7")
	a.process("12") // which would be added to the record of 7, 8 and 9
	f.mustSay("-role orders 7 8 9 10 12", "7 done", "8 done", "9 done", "10 done", "12 done")
	a, b = f.restart(a), f.restart(b)
	for _, r := range []*replica{a, b} {
		r.mustKnow("7", "8", "9", "10", "12")
	}
	f.mustSay("-role orders -forget 7 7 8", "7 forgotten", "7 forgotten", "8 forgotten")
	a = f.restart(a)
	a.mustKnow("9", "10", "12")
	a.process("7")
	b.process("8")
	for _, r := range []*replica{f.restart(a), f.restart(b)} {
		r.mustKnow("7", "8", "9", "10", "12")
	}
	f.mustSay("-role notify 7", "7 unknown")
}

// The session that recorded the forgotten id records it again where it counts.
func TestForgottenByItsOwnSession(t *testing.T) {
	f := newFixture(t)
	a := f.start()
	a.process("7")
	for range 3 {
		f.mustSay("-role orders -forget 7", "7 forgotten")
		a.process("7")
		a.process("7b")
		f.mustSay("-role orders -forget 7b", "7b forgotten")
	}
	f.restart(a).mustKnow("7")
}

// Operators who forget ids of one record at once do not undo each other's work.
func TestForgetAtOnce(t *testing.T) {
	f := newFixture(t)
	a := f.start()
	var all []string
	for i := range 12 {
		all = append(all, fmt.Sprint(i))
		a.process(all[i])
	}
	var forgetting sync.WaitGroup
	for _, id := range all[1:] {
		forgetting.Go(func() { f.mustSay("-role orders -forget "+id, id+" forgotten") })
	}
	forgetting.Wait()
	b := f.restart(a)
	b.mustKnow("0")
	for _, id := range all[1:] {
		b.process(id)
	}
}

// An id that is kept for ever is forgotten as well.
func TestForgetForEver(t *testing.T) {
	f := newFixture(t)
	client, err := f.etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for key, value := range map[string]string{"window/forever": "0s", "done/forever/s/0000000000000002": `["7","8"]`, "session/s": "vm 17"} {
		if _, err := client.Put(t.Context(), "/service/orders/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	if out := f.mustSay("-role orders 7", "7 done"); !strings.Contains(out, "for ever") || !strings.Contains(out, "vm 17") {
		t.Errorf("the answer is %s", out)
	}
	f.mustSay("-role orders -forget 7", "7 forgotten")
	a := f.start()
	a.mustKnow("8")
	a.process("7")
}

// The command lines of the README work as they are written.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	a := f.start()
	a.process("123")
	want := []string{"123 done  .*\n124 unknown\n", "123 forgotten  .*\n"}
	for line := range strings.Lines(string(readme)) {
		if !strings.HasPrefix(line, "go run ./svc/ids ") {
			continue
		}
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "ETCD_ENDPOINTS="+f.etcd.Endpoint())
		out, err := cmd.CombinedOutput()
		if !regexp.MustCompile("^"+want[0]+"$").Match(out) || err != nil {
			t.Errorf("%s prints %s (%v), want %s", line, out, err, want[0])
		}
		want = want[1:]
	}
	if len(want) > 0 {
		t.Error("the README does not have all commands")
	}
	a.process("123")
}

// Bad arguments and variables end the command with 2, an etcd that does not answer with 1.
func TestStatus(t *testing.T) {
	for _, args := range [][]string{
		{}, {"7"}, {"-role", "orders"}, {"-role", "a/b", "7"}, {"-role", "orders", ""}, {"-role", "orders", strings.Repeat("x", 513)},
		{"-role", "orders", "\xff"}, {"-rule", "orders", "7"},
	} {
		var out, errOut strings.Builder
		if status := run(t.Context(), args, nil, time.Minute, &out, &errOut); status != 2 || errOut.Len() == 0 || out.Len() > 0 {
			t.Errorf("%q: status %d, %s%s", args, status, out.String(), errOut.String())
		}
	}
	var out, errOut strings.Builder
	if status := run(t.Context(), []string{"-role", "orders", "7"}, []string{"ETCD_ENDPOINTS=nowhere"}, time.Minute, &out, &errOut); status != 2 || !strings.Contains(errOut.String(), "ETCD_ENDPOINTS") {
		t.Errorf("a bad variable: status %d, %s", status, errOut.String())
	}
	silent, err := net.Listen("tcp", "localhost:0") // accepts connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, args := range []string{"-role orders 7", "-role orders -forget 7"} {
		for _, environ := range [][]string{nil, {"ETCD_USERNAME=u", "ETCD_PASSWORD=p"}} {
			out.Reset()
			errOut.Reset()
			environ = append(environ, "ETCD_ENDPOINTS="+silent.Addr().String())
			if status := run(t.Context(), strings.Fields(args), environ, 200*time.Millisecond, &out, &errOut); status != 1 || !strings.Contains(errOut.String(), "check that etcd is up, and ETCD_ENDPOINTS") {
				t.Errorf("%s: status %d, %s", args, status, errOut.String())
			}
		}
	}
}
