package consume_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a pipeline of the role "orders" with fakes of everything that it calls.
// Its journal has a line for each call, in order:
//
//	claim 1, complete 1: done               a call that returns, and its error if it has one
//	work 1: attempt 1, token 1              the handler begins
//	dead-letter failed after 3: boom, ack   the delivery is dead-lettered, acknowledged
//	count new_order_ok                      a counter is incremented
//	msg=processed type=new_order id=1       a line is logged
type process struct {
	*consume.Pipeline
	*journal
	claims     *claims
	handlerCtx context.Context
	ids        int // of tenant a, see refusals_test.go
}

// newProcess returns a process that handles new_order with work. The end of the test
// cancels its handlers.
func newProcess(t *testing.T, work consume.Handler) *process {
	p := &process{journal: &journal{}, handlerCtx: t.Context()}
	p.claims = &claims{journal: p.journal, token: 1, answers: make(map[string][]error), waits: make(map[string]chan struct{})}
	p.claims.held, p.claims.suspend = context.WithCancelCause(t.Context())
	handler := func(ctx context.Context, job consume.Job) error {
		p.add("work %s: attempt %d, token %d", job.ID, job.Attempt, job.Token)
		return work(ctx, job)
	}
	log := slog.New(slog.NewTextHandler(p.journal, &slog.HandlerOptions{ReplaceAttr: forJournal}))
	p.Pipeline = &consume.Pipeline{
		Role: "orders", Handlers: map[string]consume.Handler{"new_order": handler}, Claims: p.claims, RequireID: true, InProcess: true,
		Counter: counter{p.journal}, Log: log, Outage: &outage.Log{Logger: slog.New(slog.DiscardHandler), Begins: "unavailable", Ends: "available"},
		MaxAttempts: 3, Timeout: 30 * time.Second, Semaphore: make(consume.Semaphore, 1),
	}
	return p
}

// withoutEtcd makes p claim and record nothing.
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
	return &delivery{journal: p.journal, held: 100, body: fmt.Sprintf(`{"type":"new_order","id":%q}`, id)}
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

// expect compares the lines since its last call with want.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	if diff := cmp.Diff(want, j.lines); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
	j.lines = nil
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
	body    string
	headers map[string]any
	returns int
	held    int
	broken  bool // the broker does not accept dead letters
	refused int  // how many copies the broker refuses
}

func (d *delivery) Body() []byte            { return []byte(d.body) }
func (d *delivery) Headers() map[string]any { return d.headers }
func (d *delivery) Ack()                    { d.add("ack") }
func (d *delivery) Returns() int            { return d.returns }
func (d *delivery) Held() int               { return d.held }

func (d *delivery) DeadLetter(ctx context.Context, l consume.Failure) error {
	if d.broken {
		<-ctx.Done()
		return fmt.Errorf("dead-letter: %w", context.Cause(ctx))
	}
	d.add("dead-letter %s after %d: %v", l.Reason, l.Attempts, l.Err)
	return nil
}

func (d *delivery) Requeue(ctx context.Context) error {
	if d.refused > 0 {
		d.refused--
		d.add("requeue: refused")
		return errBoom
	}
	d.add("requeue")
	return nil
}

// claims is a consume.Claimer that follows a script. Without one it grants every id.
type claims struct {
	*journal
	answers map[string][]error       // of the next calls of that name; after these: nil
	waits   map[string]chan struct{} // a call of that name waits for its channel to close, or for its ctx to end
	others  atomic.Bool              // handle all types
	token   int64                    // of the claims that are granted next
	held    context.Context          // of the claims that are granted next
	suspend context.CancelCauseFunc  // ends held
}

// Suspend suspends the claims that were granted, until Resume. What reclaims one waits.
func (c *claims) Suspend() {
	c.waits["reclaim"] = make(chan struct{})
	c.suspend(claim.ErrSuspended)
}

// Resume grants suspended claims again.
func (c *claims) Resume() {
	c.held, c.suspend = context.WithCancelCause(context.Background())
	wait := c.waits["reclaim"]
	delete(c.waits, "reclaim")
	close(wait)
}

// call waits for a call's turn, and returns its answer. It runs alone: every goroutine of
// a test but the one that it waits for is blocked.
func (c *claims) call(ctx context.Context, name, id string) (err error) {
	if wait := c.waits[name]; wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if answers := c.answers[name]; len(answers) > 0 {
		err, c.answers[name] = answers[0], answers[1:]
	}
	switch {
	case errors.Is(err, claim.ErrDone):
		c.add("%s %s: done", name, id)
	case errors.Is(err, claim.ErrSuspended):
		c.add("%s %s: suspended", name, id)
	case errors.Is(err, claim.ErrClosed):
		c.add("%s %s: closed", name, id)
	default:
		c.add("%s %s", name, id)
	}
	return err
}

func (c *claims) Claim(ctx context.Context, id string) (*claim.Claim, error) {
	if err := c.call(ctx, "claim", id); err != nil {
		return nil, err
	}
	return &claim.Claim{ID: id, Token: c.token, Held: c.held}, nil
}

func (c *claims) Reclaim(ctx context.Context, suspended *claim.Claim) error {
	err := c.call(ctx, "reclaim", suspended.ID)
	suspended.Token, suspended.Held = c.token, c.held
	return err
}

func (c *claims) Check(ctx context.Context, held *claim.Claim) error {
	return c.call(ctx, "check", held.ID)
}

func (c *claims) Complete(held *claim.Claim) error {
	return c.call(context.Background(), "complete", held.ID)
}

func (c *claims) HandledElsewhere(string) bool { return c.others.Load() }

func (c *claims) Release(held *claim.Claim) { c.add("release %s", held.ID) }

// Handlers.

var errBoom = errors.New("boom")

func done(context.Context, consume.Job) error { return nil }

// fails returns a handler whose attempts fail with err.
func fails(err error) consume.Handler {
	return func(context.Context, consume.Job) error { return err }
}

// once returns a handler that fails with err the first time and then succeeds.
func once(err error) consume.Handler {
	var first sync.Once
	return func(context.Context, consume.Job) (result error) {
		first.Do(func() { result = err })
		return result
	}
}

func panics(context.Context, consume.Job) error { panic("boom") }

// hangs is a handler that blocks until it is cancelled.
func hangs(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return ctx.Err()
}

func hangsInOutage(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return consume.Unavailable(fmt.Errorf("connect: %w", ctx.Err()), 0)
}

// late is a handler that succeeds, but only after its timeout.
func late(ctx context.Context, _ consume.Job) error {
	<-ctx.Done()
	return nil
}
