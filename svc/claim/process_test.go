package claim_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// shared holds the etcd of all tests that break only their own connections.
var shared struct {
	sync.Once
	etcd *stack.Etcd
	dir  string
	err  error
}

func sharedEtcd(t testing.TB) *stack.Etcd {
	t.Helper()
	notShort(t)
	shared.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "claim"); shared.err == nil {
			shared.etcd, shared.err = stack.StartEtcd(context.Background(), shared.dir, stack.EtcdOptions{})
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.etcd
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.etcd != nil {
		shared.etcd.Close()
	}
	os.RemoveAll(shared.dir)
	os.Exit(code)
}

// notShort skips a test that starts servers.
func notShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd: not with -short")
	}
}

// newEtcd starts an etcd for one test.
func newEtcd(t testing.TB, o stack.EtcdOptions) *stack.Etcd {
	t.Helper()
	notShort(t)
	etcd, err := stack.StartEtcd(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { etcd.Close() })
	return etcd
}

func newClient(t testing.TB, etcd *stack.Etcd) *clientv3.Client {
	t.Helper()
	client, err := etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

var roles atomic.Int64

// newRole returns a role that no other test uses.
func newRole() string { return fmt.Sprintf("test%d", roles.Add(1)) }

// process holds the claims of one process on etcd.
type process struct {
	*claim.Etcd
	t      testing.TB
	client *clientv3.Client
	prefix string // of the role's keys
	log    *journal
	lease  clientv3.LeaseID // of its first session
	Close  func()
}

// start loads and runs the claims of a process of o.Role and waits for its session.
// They end with the test. Several processes may share a role.
func start(t testing.TB, client, direct *clientv3.Client, o claim.Options) *process {
	t.Helper()
	if o.TTL == 0 {
		o.TTL = 2 * time.Second
	}
	if o.MaxIDs == 0 {
		o.MaxIDs = 1_000_000
	}
	o.CloseTimeout = 5 * time.Second
	p := &process{t: t, client: direct, prefix: "/service/" + o.Role + "/", log: &journal{t: t}}
	o.Log = slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.Etcd = claim.NewEtcd(etcd.New(client, o.Log), o)
	ctx, cancel := context.WithCancel(context.Background())
	if err := p.Load(ctx); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	p.Close = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(p.Close)
	line := p.log.await(`msg="session opened"`)
	if _, err := fmt.Sscanf(line[strings.Index(line, "lease="):], "lease=%x", &p.lease); err != nil {
		t.Fatal(err)
	}
	return p
}

// journal is the log of a process.
type journal struct {
	t     testing.TB
	mu    sync.Mutex
	lines []string
}

// Write implements io.Writer for slog, which writes line by line.
func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(line))
	return len(line), nil
}

// find returns the lines that contain all of what.
func (j *journal) find(what ...string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		missing := false
		for _, w := range what {
			missing = missing || !strings.Contains(line, w)
		}
		if !missing {
			found = append(found, line)
		}
	}
	return found
}

// await waits for a line that contains all of what.
func (j *journal) await(what ...string) (line string) {
	j.t.Helper()
	eventually(j.t, func() error {
		if found := j.find(what...); len(found) > 0 {
			line = found[0]
			return nil
		}
		return fmt.Errorf("no line with %q in:\n%s", what, strings.Join(j.find(), ""))
	})
	return line
}

// eventually calls f until it succeeds.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}
