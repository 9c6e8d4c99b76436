package consume_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/claim/claimtest"
	"github.com/streamdal/gophercon2021/svc/consume"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a pipeline of the role "orders" with everything that it talks to.
// All that it does to them is one line each in its journal, in order:
//
//	claim 1: granted                                      asked of the store
//	try 1: attempt 1, token 1                             the handler begins
//	complete 1, complete 1: lost, release 1               told to the store
//	dead-letter failed after 3: boom, ack                 done to the delivery
//	count new_order_ok
//	msg=processed service=orders type=new_order id=1      logged
type process struct {
	*consume.Pipeline
	*journal
	records *claimtest.Records // shared with other processes
	session *claimtest.Memory  // of this one
	store   *store
}

// concurrency is how many handlers run at once if a test does not say.
const concurrency = 8

// newProcess returns a process whose handler of new_order is work. Its handlers
// are cancelled at the end of the test.
func newProcess(t *testing.T, work consume.Handler) *process {
	p := &process{journal: &journal{}, records: claimtest.NewRecords()}
	p.session = p.records.Open()
	p.store = &store{Memory: p.session, journal: p.journal, work: t.Context()}
	handler := func(ctx context.Context, job consume.Job) error {
		p.add("try %s: attempt %d, token %d", job.ID, job.Attempt, job.Token)
		return work(ctx, job)
	}
	p.Pipeline = &consume.Pipeline{
		Service: "orders", Handlers: map[string]consume.Handler{"new_order": handler},
		Claims: claim.NewKeeper(p.store, claim.NewCache(1000, 0)), RequireID: true,
		Counter: counter{p.journal}, Log: slog.New(slog.NewTextHandler(p.journal, &slog.HandlerOptions{ReplaceAttr: forJournal})),
		MaxAttempts: 3, Timeout: 30 * time.Second, Slots: make(consume.Slots, concurrency),
	}
	return p
}

// withoutEtcd makes it a process that keeps no records. Its handlers are
// cancelled when work ends.
func (p *process) withoutEtcd(work context.Context) {
	p.Claims, p.RequireID = claim.Unchecked{Work: work}, false
}

// handle starts to handle a delivery with that body and returns when nothing
// more happens without time passing. Has reports whether it has returned.
func (p *process) handle(ctx context.Context, d *delivery) (has func() bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Handle(ctx, d)
	}()
	synctest.Wait()
	return func() bool {
		synctest.Wait()
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
}

// order returns a delivery of the new_order with that id.
func (p *process) order(id string) *delivery {
	return &delivery{journal: p.journal, body: fmt.Sprintf(`{"type":"new_order","id":%q}`, id)}
}

// pass lets d of the bubble's clock pass, and what happens then happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

// Write implements io.Writer for slog, which writes line by line.
func (j *journal) Write(line []byte) (int, error) {
	j.add("%s", strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

// expect compares what has happened since the last time.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, j.take()); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// expectInAnyOrder is for what happened to several deliveries at once.
func (j *journal) expectInAnyOrder(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(j.take()))); diff != "" {
		t.Errorf("what happened, sorted (-want +got):\n%s", diff)
	}
}

// take returns what has happened since the last time.
func (j *journal) take() []string {
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

// count returns how many lines begin with prefix.
func (j *journal) count(prefix string) (n int) {
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

func forJournal(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey || a.Key == "stack" || a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo {
		return slog.Attr{}
	}
	return a
}

type counter struct{ *journal }

func (c counter) Count(name string) { c.add("count %s", name) }

// delivery is a consume.Delivery.
type delivery struct {
	*journal
	body   string
	broken bool // the broker does not take dead letters
}

func (d *delivery) Body() []byte { return []byte(d.body) }
func (d *delivery) Ack()         { d.add("ack") }

func (d *delivery) DeadLetter(ctx context.Context, l consume.Letter) error {
	if d.broken {
		<-ctx.Done()
		return fmt.Errorf("dead-letter: %w", context.Cause(ctx))
	}
	d.add("dead-letter %s after %d: %v", l.Reason, l.Attempts, l.Err)
	return nil
}

// store is a claim.Store that keeps the journal.
type store struct {
	*claimtest.Memory
	*journal
	answer   chan struct{}   // if not nil, no claim is answered until it is closed
	complete chan struct{}   // if not nil, the same for completes
	work     context.Context // grants end with it, too
}

func (s *store) Claim(id string) (claim.Answer, error) {
	a, err := s.Memory.Claim(id)
	s.add("claim %s: %v", id, a.State)
	if s.answer != nil {
		<-s.answer
	}
	if a.State == claim.Granted {
		held, cancel := context.WithCancel(a.Grant.Held)
		context.AfterFunc(s.work, cancel)
		a.Grant.Held = held
	}
	return a, err
}

func (s *store) Complete(g claim.Grant) (time.Duration, error) {
	if s.complete != nil {
		<-s.complete
	}
	life, err := s.Memory.Complete(g)
	if err != nil {
		s.add("complete %s: lost", g.ID)
	} else {
		s.add("complete %s", g.ID)
	}
	return life, err
}

func (s *store) Release(g claim.Grant) error {
	s.add("release %s", g.ID)
	return s.Memory.Release(g)
}

// done is a handler whose work succeeds at once.
func done(context.Context, consume.Job) error { return nil }

// gate is a handler that works until it is opened, or cancelled. Make it in the
// bubble.
type gate chan struct{}

func (g gate) work(ctx context.Context, _ consume.Job) error {
	select {
	case <-g:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deaf is a handler that works until it is opened, cancelled or not.
func (g gate) deaf(context.Context, consume.Job) error {
	<-g
	return nil
}

func mustBeFree(t *testing.T, p *process, id string) {
	t.Helper()
	if a, err := p.records.Open().Claim(id); err != nil || a.State != claim.Granted {
		t.Errorf("another process that claims %s: %v, %v; want granted", id, a.State, err)
	}
}
