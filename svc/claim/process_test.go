package claim_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
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

// shared is the etcd of all tests that break only their own connections.
var shared *stack.Etcd

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "claim")
	if err == nil {
		shared, err = stack.StartEtcd(context.Background(), dir, stack.EtcdOptions{})
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	shared.Close()
	os.RemoveAll(dir)
	os.Exit(code)
}

func sharedEtcd(t testing.TB) *stack.Etcd {
	t.Helper()
	notShort(t)
	return shared
}

// notShort skips a test that starts servers.
func notShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd: not with -short")
	}
}

// startEtcd starts an etcd of some members for one test.
func startEtcd(t testing.TB, members int, o stack.EtcdOptions) []*stack.Etcd {
	t.Helper()
	notShort(t)
	started, err := stack.StartEtcdCluster(t.Context(), t.TempDir(), members, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range started {
		t.Cleanup(func() { e.Close() })
	}
	return started
}

func newClient(t testing.TB, e *stack.Etcd) *clientv3.Client {
	t.Helper()
	client, err := e.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

var (
	rolesMade   atomic.Int64
	rolesOfTest sync.Map // by test
)

// newRole returns a role that is not used yet, and roleOf that of a test.
func newRole() string { return fmt.Sprint("role", rolesMade.Add(1)) }

func roleOf(t testing.TB) string {
	role, _ := rolesOfTest.LoadOrStore(t, newRole())
	return role.(string)
}

// process holds the claims of one process on etcd.
type process struct {
	*claim.Etcd
	t       testing.TB
	client  *clientv3.Client
	prefix  string // of the role's keys
	log     *journal
	session string           // its first
	lease   clientv3.LeaseID // of that
	Close   func()
}

// start loads and runs the claims of a process and waits for its session.
// They end with the test. The processes of a test share a role, unless the options name one.
func start(t testing.TB, e *stack.Etcd, o claim.Options, wrap ...func(*clientv3.Client)) *process {
	t.Helper()
	o.Role, o.TTL, o.MaxIDs = cmp.Or(o.Role, roleOf(t)), cmp.Or(o.TTL, 2*time.Second), cmp.Or(o.MaxIDs, 1_000_000)
	o.CloseTimeout = 5 * time.Second
	p := &process{t: t, client: newClient(t, e), prefix: "/service/" + o.Role + "/", log: &journal{t: t}}
	for _, w := range wrap {
		w(p.client)
	}
	o.Log = slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.Etcd = claim.NewEtcd(etcd.New(p.client, o.Log), o)
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
	if _, err := fmt.Sscanf(line[strings.Index(line, "session="):], "session=%s lease=%x", &p.session, &p.lease); err != nil {
		t.Fatal(err)
	}
	return p
}

// claim calls Claim, which must end.
func (p *process) claim(id string) (*claim.Claim, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errors.New("no answer within a minute"))
	defer cancel()
	return p.Claim(ctx, id)
}

func (p *process) mustClaim(id string) *claim.Claim {
	p.t.Helper()
	c, err := p.claim(id)
	if err != nil {
		p.t.Fatalf("claim of %s: %v", id, err)
	}
	return c
}

func (p *process) mustComplete(id string) {
	p.t.Helper()
	if err := p.Complete(p.mustClaim(id)); err != nil {
		p.t.Fatalf("complete of %s: %v", id, err)
	}
}

func (p *process) mustBeDone(id string) {
	p.t.Helper()
	if c, err := p.claim(id); !errors.Is(err, claim.ErrDone) {
		p.t.Errorf("claim of %s: %+v, %v, want ErrDone", id, c, err)
	}
}

// keys returns the keys of the role that begin with prefix, with their values.
func (p *process) keys(prefix string) map[string]string {
	p.t.Helper()
	resp, err := p.client.Get(context.Background(), p.prefix+prefix, clientv3.WithPrefix())
	if err != nil {
		p.t.Fatal(err)
	}
	keys := make(map[string]string)
	for _, kv := range resp.Kvs {
		keys[strings.TrimPrefix(string(kv.Key), p.prefix)] = string(kv.Value)
	}
	return keys
}

// awaitClaims waits until n claims are written.
func (p *process) awaitClaims(n int) {
	p.t.Helper()
	eventually(p.t, func() error {
		if claims := p.keys("claim/"); len(claims) != n {
			return fmt.Errorf("the claims are %v, want %d", claims, n)
		}
		return nil
	})
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
func (j *journal) find(what ...string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.lines), func(line string) bool {
		return slices.ContainsFunc(what, func(w string) bool { return !strings.Contains(line, w) })
	})
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
