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
	must(t, err)
	t.Cleanup(func() { server.Close() })
	return &fixture{t, server}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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
	must(f.t, err)
	client := etcd.New(raw, slog.New(slog.DiscardHandler))
	r := &replica{t: f.t, Etcd: claim.NewEtcd(client, claim.Options{
		Role: "orders", TTL: 5 * time.Second, Window: time.Hour, MaxIDs: 1000, CloseTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
	})}
	ctx, cancel := context.WithCancel(context.Background())
	must(f.t, r.Load(ctx))
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
	must(r.t, r.Complete(r.claim(id)))
}

func (r *replica) claim(id string) *claim.Claim {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for {
		c, err := r.Claim(ctx, id)
		if !errors.Is(err, claim.ErrDone) || ctx.Err() != nil {
			must(r.t, err)
			return c
		}
		<-time.After(time.Millisecond)
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

// mustSay runs the command and compares the first two words of each line.
func (f *fixture) mustSay(args string, want ...string) (output string) {
	f.t.Helper()
	var out, errOut strings.Builder
	status := run(f.t.Context(), strings.Fields(args), []string{"ETCD_ENDPOINTS=" + f.etcd.Endpoint()}, time.Minute, &out, &errOut)
	var said []string
	for line := range strings.Lines(out.String()) {
		said = append(said, strings.Join(strings.Fields(line)[:2], " "))
	}
	hinted := strings.Contains(errOut.String(), "nothing is known of them under /service/")
	nothing := !slices.ContainsFunc(want, func(line string) bool { return !strings.HasSuffix(line, " unknown") })
	if status != 0 || !slices.Equal(said, want) || hinted != nothing {
		f.t.Errorf("ids %s: status %d, %q %s, want %q", args, status, said, &errOut, want)
	}
	return out.String()
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
	must(t, b.Complete(claimed))
	a.process("7")  // by the session that recorded it before
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
	must(t, err)
	defer client.Close()
	for key, value := range map[string]string{"window/forever": "0s", "done/forever/s/0000000000000002": `["7","8"]`, "session/s": "vm 17"} {
		_, err := client.Put(t.Context(), "/service/orders/"+key, value)
		must(t, err)
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
	must(t, err)
	f := newFixture(t)
	a := f.start()
	a.process("123")
	want := []string{"123 done  .*\n124 unknown\n", "123 forgotten  .*\n"}
	for line := range strings.Lines(string(readme)) {
		if !strings.HasPrefix(line, "go run ./svc/ids ") {
			continue
		}
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "id=123", "ETCD_ENDPOINTS="+f.etcd.Endpoint())
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
	silent, err := net.Listen("tcp", "localhost:0") // accepts connections, and says nothing
	must(t, err)
	defer silent.Close()
	endpoint := "ETCD_ENDPOINTS=" + silent.Addr().String()
	role := func(more ...string) []string { return append([]string{"-role", "orders"}, more...) }
	for _, tt := range []struct {
		args, environ []string
		want          int
		says          string
	}{
		{nil, nil, 2, "usage"},
		{[]string{"7"}, nil, 2, "usage"},
		{role(), nil, 2, "usage"},
		{[]string{"-role", "a/b", "7"}, nil, 2, "usage"},
		{[]string{"-rule", "orders", "7"}, nil, 2, "-rule"},
		{role(""), nil, 2, "no id"},
		{role(strings.Repeat("x", 513)), nil, 2, "no id"},
		{role("\xff"), nil, 2, "no id"},
		{role("7"), []string{"ETCD_ENDPOINTS=nowhere"}, 2, "ETCD_ENDPOINTS"},
		{role("7"), []string{endpoint}, 1, "check that etcd is up, and ETCD_ENDPOINTS"},
		{role("7"), []string{endpoint, "ETCD_USERNAME=u", "ETCD_PASSWORD=p"}, 1, "check that etcd is up, and ETCD_ENDPOINTS"},
		{role("-forget", "7"), []string{endpoint}, 1, "check that etcd is up, and ETCD_ENDPOINTS"},
	} {
		var out, errOut strings.Builder
		if status := run(t.Context(), tt.args, tt.environ, 200*time.Millisecond, &out, &errOut); status != tt.want || !strings.Contains(errOut.String(), tt.says) || out.Len() > 0 {
			t.Errorf("%.40q %s: status %d, %s%s", tt.args, tt.environ, status, &out, &errOut)
		}
	}
}
