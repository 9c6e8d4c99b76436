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

// process is a pipeline of the role "orders" with everything that it talks to.
// All that it does to them is one line each in its journal, in order:
//
//	claim 1, reclaim 1: done, check 1: suspended   what the claims answered; nothing more: nil
//	work 1: attempt 1, token 1                     the handler begins
//	complete 1, complete 1: done, release 1        how the claim ended
//	dead-letter failed after 3: boom, ack          done to the delivery
//	count new_order_ok
//	msg=processed type=new_order id=1              logged
type process struct {
	*consume.Pipeline
	*journal
	records    *claimtest.Records // shared with other processes
	claims     *claims
	handlerCtx context.Context
}

// concurrency is how many handlers run at once if a test does not say.
const concurrency = 8

// newProcess returns a process whose handler of new_order is work. Its handlers
// are cancelled at the end of the test.
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

// withoutEtcd makes it a process that keeps no records.
func (p *process) withoutEtcd() { p.Claims, p.RequireID = claim.NoDedup{}, false }

// run handles a delivery until it is acknowledged or given up.
func (p *process) run(d *delivery) { p.Handle(p.handlerCtx, p.handlerCtx, d) }

// handle starts to handle a delivery and returns when nothing more happens
// without time passing. Returned reports whether it is acknowledged or given up.
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

func (d *delivery) DeadLetter(ctx context.Context, l consume.Failure) error {
	if d.broken {
		<-ctx.Done()
		return fmt.Errorf("dead-letter: %w", context.Cause(ctx))
	}
	d.add("dead-letter %s after %d: %v", l.Reason, l.Attempts, l.Err)
	return nil
}

// claims are the claims of one process. They keep the journal, and can be told to
// hold back an answer or to end with the process.
type claims struct {
	*claimtest.Memory
	*journal
	check, complete chan struct{} // if not nil, these calls wait until it is closed
	fail            map[string]error
}

// answer journals the answer to a call, or fails the call.
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
		t.Fatalf("another process that claims %s: %v", id, err)
	}
	return c
}
