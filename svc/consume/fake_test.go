package consume_test

import (
	"context"
	"errors"
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

// process is a pipeline of the role "orders" with fakes of everything that it calls.
// Its journal has a line for each call, in order:
//
//	claim 1, reclaim 1: done, check 1: suspended   a call and its error; nothing after the id: nil
//	work 1: attempt 1, token 1                     the handler begins
//	complete 1, complete 1: done, release 1        the claim ends
//	dead-letter failed after 3: boom, ack          the delivery is dead-lettered, acknowledged
//	count new_order_ok                             a counter is incremented
//	msg=processed type=new_order id=1              a line is logged
type process struct {
	*consume.Pipeline
	*journal
	records    *claimtest.Records // shared with other processes
	claims     *claims
	handlerCtx context.Context
}

// concurrency is the default number of handlers that run at once.
const concurrency = 8

// newProcess returns a process that handles new_order with work. The end of the test
// cancels its handlers.
func newProcess(t *testing.T, work consume.Handler) *process {
	p := &process{journal: &journal{}, records: claimtest.NewRecords(), handlerCtx: t.Context()}
	p.claims = &claims{Memory: p.records.Open(), journal: p.journal}
	handler := func(ctx context.Context, job consume.Job) error {
		p.add("work %s: attempt %d, token %d", job.ID, job.Attempt, job.Token)
		return work(ctx, job)
	}
	p.Pipeline = &consume.Pipeline{
		Handlers: map[string]consume.Handler{"new_order": handler}, Claims: p.claims, RequireID: true,
		Counter: counter{p.journal}, Log: slog.New(slog.NewTextHandler(p.journal, &slog.HandlerOptions{ReplaceAttr: forJournal})),
		MaxAttempts: 3, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, concurrency),
	}
	return p
}

// withoutEtcd makes p claim and record nothing, as without etcd.
func (p *process) withoutEtcd() { p.Claims, p.RequireID = claim.NoDedup{}, false }

// run handles a delivery until it is acknowledged or given up.
func (p *process) run(d *delivery) { p.Handle(p.handlerCtx, p.handlerCtx, d) }

// handle starts to handle a delivery and returns when every goroutine is blocked.
// returned reports whether Handle has returned.
func (p *process) handle(ctx context.Context, d *delivery) (returned func() bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Handle(ctx, p.handlerCtx, d)
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

// order returns a delivery of a new_order event with that id.
func (p *process) order(id string) *delivery {
	return &delivery{journal: p.journal, body: fmt.Sprintf(`{"type":"new_order","id":%q}`, id)}
}

// pass advances the bubble's clock by d, and waits until every goroutine is blocked.
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

// expect compares the lines since the last call of expect or take with want.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, j.take()); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// expectInAnyOrder is expect for the lines of several concurrent deliveries.
func (j *journal) expectInAnyOrder(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(j.take()))); diff != "" {
		t.Errorf("what happened, sorted (-want +got):\n%s", diff)
	}
}

// take returns the lines since the last call, and removes them.
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
	broken bool // the broker does not accept dead letters
}

func (d *delivery) Body() []byte { return []byte(d.body) }
func (d *delivery) Ack()         { d.add("ack") }

func (d *delivery) DeadLetter(ctx context.Context, l consume.Failure) error {
	if d.broken {
		<-ctx.Done()
		return fmt.Errorf("dead-letter: %w", context.Cause(ctx))
	}
	d.add("dead-letter %s after %d: %v", l.Reason, l.Attempts, l.Err)
	return nil
}

// claims are the claims of one process. They write their calls to the journal, and can
// delay or fail calls.
type claims struct {
	*claimtest.Memory
	*journal
	check, complete chan struct{} // if not nil, Check or Complete waits until it is closed
	fail            map[string]error
}

// answer writes a call and its result to the journal, or fails the call.
func (c *claims) answer(call, id string, err error) error {
	if fail := c.fail[call]; fail != nil {
		return fail
	}
	switch {
	case err == nil:
		c.add("%s %s", call, id)
	case errors.Is(err, claim.ErrDone):
		c.add("%s %s: done", call, id)
	case errors.Is(err, claim.ErrSuspended):
		c.add("%s %s: suspended", call, id)
	}
	return err
}

func (c *claims) Claim(ctx context.Context, id string) (*claim.Claim, error) {
	granted, err := c.Memory.Claim(ctx, id)
	return granted, c.answer("claim", id, err)
}

func (c *claims) Reclaim(ctx context.Context, suspended *claim.Claim) error {
	return c.answer("reclaim", suspended.ID, c.Memory.Reclaim(ctx, suspended))
}

func (c *claims) Check(ctx context.Context, held *claim.Claim) error {
	if c.check != nil {
		select {
		case <-c.check:
		case <-held.Held.Done():
		case <-ctx.Done():
		}
	}
	return c.answer("check", held.ID, c.Memory.Check(ctx, held))
}

func (c *claims) Complete(held *claim.Claim) error {
	if c.complete != nil {
		<-c.complete
	}
	return c.answer("complete", held.ID, c.Memory.Complete(held))
}

func (c *claims) Release(held *claim.Claim) {
	c.add("release %s", held.ID)
	c.Memory.Release(held)
}

// done is a handler whose work succeeds at once.
func done(context.Context, consume.Job) error { return nil }

// gate blocks handlers until it is closed. It must be made in the bubble.
type gate chan struct{}

func (g gate) work(ctx context.Context, _ consume.Job) error {
	select {
	case <-g:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deaf is a handler that blocks until g is closed, even if it is cancelled.
func (g gate) deaf(context.Context, consume.Job) error {
	<-g
	return nil
}

// mustBeFree fails if another process cannot claim id.
func mustBeFree(t *testing.T, p *process, id string) {
	t.Helper()
	claimNow(t, p.records.Open(), id)
}

// claimNow claims an id that is free.
func claimNow(t *testing.T, m *claimtest.Memory, id string) *claim.Claim {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := m.Claim(ctx, id)
	if err != nil {
		t.Fatalf("another process cannot claim %s: %v", id, err)
	}
	return c
}
