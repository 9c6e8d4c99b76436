package claim_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var exploreFaults = flag.Int("faults", 2, "faults in a run of TestExplore; 2 take half a minute, 3 some ten")

// TestExplore runs the real pipeline, keeper and store of two processes, with
// two copies of one event, through every order of what can happen, with at most
// faults faults in a run: a request lost, an answer lost, a request committed
// late (at any later time, or never), a crash, a lease that expires, a
// keep-alive that is lost in a living process, a reconnect that delivers an
// event again to either process, a handler that fails, time that passes.
//
// Each run starts anew and follows a list of choices; a run ends early when it
// reaches a state that was explored before. In every state the invariants are
// checked, and at the end of every run that all is settled.
func TestExplore(t *testing.T) {
	faults := *exploreFaults
	if testing.Short() {
		faults = 1
		t.Log("-short: one fault a run")
	}
	x := &explorer{faults: faults}
	x.explore(t)
	if x.violation != "" {
		t.Error(x.violation)
	}
	t.Logf("explored with up to %d faults: %d runs, %d states, %d ends", faults, x.runs, len(x.seen), x.ends)
}

// The exploration notices when a guard is missing.
func TestExploreNotices(t *testing.T) {
	for _, broken := range []string{
		"claim takes what is there", "complete and release ignore the token", "takeover ignores what happened since",
	} {
		t.Run(broken, func(t *testing.T) {
			x := &explorer{faults: 2, broken: broken}
			x.explore(t)
			if x.violation == "" {
				t.Error("no violation was found")
			}
			t.Logf("after %d runs: %s", x.runs, x.violation)
		})
	}
}

// explorer is the search: depth first, by replay.
type explorer struct {
	faults int
	broken string

	path      []choice
	seen      map[string]bool
	runs      int
	ends      int
	violation string

	// Of the run.
	mu         sync.Mutex
	etcd       *simEtcd
	processes  []*simProcess
	late       []lateCall
	messages   []*message
	faultsLeft int
	handled    []handled // works that were begun, in their order
	trace      []string
	owners     map[string]string // values of claims to processes
	answerLost bool
}

type choice struct{ taken, of int }

// explore runs until no choice is left untried, or a violation is found.
func (x *explorer) explore(t *testing.T) {
	x.seen = make(map[string]bool)
	for more := true; more && x.violation == ""; more = x.next() {
		synctest.Test(t, x.run)
		x.runs++
	}
}

// next turns the path to the next one in order.
func (x *explorer) next() bool {
	for len(x.path) > 0 {
		last := &x.path[len(x.path)-1]
		if last.taken++; last.taken < last.of {
			return true
		}
		x.path = x.path[:len(x.path)-1]
	}
	return false
}

// message is one copy of the event, as the broker has it.
type message struct {
	to    *simProcess // nil: not delivered
	gone  context.CancelFunc
	acked bool
}

type handled struct {
	by    *simProcess
	token int64
	state string // running, done, failed, cancelled
	end   chan error
}

type lateCall struct {
	from  *simProcess
	what  string
	apply func() (any, error)
}

type action struct {
	name        string
	fault, slow bool
	do          func()
}

func (x *explorer) run(t *testing.T) {
	x.etcd = newSimEtcd()
	x.etcd.broken = x.broken
	x.processes, x.late, x.handled, x.trace = nil, nil, nil, nil
	x.owners = make(map[string]string)
	x.faultsLeft, x.answerLost = x.faults, false
	defer func() {
		for _, p := range x.processes {
			p.end()
		}
	}()
	x.mu.Lock() // but while the processes run
	defer x.mu.Unlock()
	for _, name := range []string{"A", "B"} {
		x.processes = append(x.processes, x.startProcess(name))
	}
	x.messages = []*message{{}, {}}
	for i, m := range x.messages {
		x.deliver(m, x.processes[i])
	}
	idle := 0
	for depth := 0; ; {
		x.letRun(synctest.Wait)
		if x.check(); x.violation != "" {
			return
		}
		actions := x.enabled()
		if nothingUrgent(actions) && idle < 4 {
			actions = append([]action{{name: "time", do: func() {
				idle++
				x.letRun(func() { <-time.After(3 * time.Second) })
			}}}, actions...)
		} else if allFaults(actions) { // nothing comes of time any more
			x.checkEnd()
			return
		}
		pick := 0
		if len(actions) > 1 {
			if depth == len(x.path) {
				if state := x.state(idle); x.seen[state] {
					return
				} else {
					x.seen[state] = true
				}
				x.path = append(x.path, choice{0, len(actions)})
			}
			if x.path[depth].of != len(actions) {
				x.fail("the replay is not deterministic: %v", names(actions))
				return
			}
			pick = x.path[depth].taken
			depth++
		}
		x.trace = append(x.trace, actions[pick].name)
		if actions[pick].fault {
			x.faultsLeft--
		}
		if actions[pick].name != "time" {
			idle = 0
		}
		actions[pick].do()
	}
}

// letRun lets the processes run until wait returns.
func (x *explorer) letRun(wait func()) {
	x.mu.Unlock()
	defer x.mu.Lock()
	wait()
}

// nothingUrgent reports whether time can pass before any of the actions: the
// revocation of a session and what is committed late may take any time.
func nothingUrgent(actions []action) bool {
	return !slices.ContainsFunc(actions, func(a action) bool { return !a.fault && !a.slow })
}

func allFaults(actions []action) bool {
	return !slices.ContainsFunc(actions, func(a action) bool { return !a.fault })
}

func names(actions []action) (names []string) {
	for _, a := range actions {
		names = append(names, a.name)
	}
	return names
}

// enabled lists what can happen next.
func (x *explorer) enabled() (all []action) {
	add := func(fault bool, name string, do func()) {
		if !fault || x.faultsLeft > 0 {
			all = append(all, action{name: name, fault: fault, do: do})
		}
	}
	for _, p := range x.processes {
		for _, c := range p.pending() {
			name := p.name + " " + c.what
			add(false, name, func() { c.answer(c.apply()) })
			all[len(all)-1].slow = c.kind == "revoke"
			if c.kind == "txn" {
				unavailable := status.Error(codes.Unavailable, "lost")
				add(true, name+": answer lost", func() {
					x.answerLost = true
					c.apply()
					c.answer(nil, unavailable)
				})
				add(true, name+": late", func() {
					x.answerLost = true
					x.late = append(x.late, lateCall{p, c.what, c.apply})
					c.answer(nil, unavailable)
				})
			}
		}
		if p.crashed {
			for _, lease := range p.leases {
				if x.etcd.leases[lease] {
					add(false, fmt.Sprintf("%s lease %d expires", p.name, lease), func() { x.etcd.end(lease) })
				}
			}
			continue
		}
		add(true, p.name+" crashes", func() { x.crash(p) })
		for _, lease := range p.leases {
			if x.etcd.leases[lease] && !p.lost[lease] {
				add(true, fmt.Sprintf("%s lease %d expires", p.name, lease), func() { x.etcd.end(lease); p.disturbed = true })
				add(true, fmt.Sprintf("%s keep-alive %d lost", p.name, lease), func() { p.lose(lease) })
			} else if !p.lost[lease] && p.disturbed {
				add(false, fmt.Sprintf("%s notices the end of %d", p.name, lease), func() { p.lose(lease) })
			}
		}
	}
	for i, h := range x.handled {
		if h.state == "running" && !h.by.crashed {
			add(false, fmt.Sprintf("%s's work %d done", h.by.name, i), func() { x.handled[i].state = "done"; h.end <- nil })
			add(true, fmt.Sprintf("%s's work %d fails", h.by.name, i), func() {
				x.handled[i].state = "failed"
				h.end <- consume.Final(errors.New("failed"))
			})
		}
	}
	for i, l := range x.late {
		add(false, fmt.Sprintf("late %s of %s", l.what, l.from.name), func() {
			x.late = slices.Delete(x.late, i, i+1)
			l.apply()
		})
		all[len(all)-1].slow = true
	}
	for i, m := range x.messages {
		if m.acked {
			continue
		}
		if m.to == nil {
			for _, p := range x.processes {
				if !p.crashed {
					add(false, fmt.Sprintf("message %d to %s", i, p.name), func() { x.deliver(m, p) })
				}
			}
		} else {
			add(true, fmt.Sprintf("message %d's channel is lost", i), func() { m.gone(); m.to = nil })
		}
	}
	return all
}

func (x *explorer) deliver(m *message, p *simProcess) {
	ctx, gone := context.WithCancel(p.life)
	m.to, m.gone = p, gone
	p.wg.Go(func() { p.pipeline.Handle(ctx, &simDelivery{x: x, m: m, ctx: ctx}) })
}

func (x *explorer) crash(p *simProcess) {
	p.crashed = true
	p.kill()
	for _, m := range x.messages {
		if m.to == p && !m.acked {
			m.to = nil
		}
	}
}

// simDelivery is a consume.Delivery. Its acknowledgement counts only while its
// channel is there.
type simDelivery struct {
	x   *explorer
	m   *message
	ctx context.Context
}

func (d *simDelivery) Body() []byte { return []byte(`{"type":"t","id":"1"}`) }

func (d *simDelivery) Ack() {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	if d.ctx.Err() == nil {
		d.m.acked = true
	}
}

func (d *simDelivery) DeadLetter(context.Context, consume.Letter) error { return nil }

// simProcess is one process of the role.
type simProcess struct {
	x         *explorer
	name      string
	life      context.Context
	kill      context.CancelFunc
	store     *claim.Etcd
	lease     clientv3.Lease
	pipeline  *consume.Pipeline
	renewals  chan *etcdserverpb.LeaseKeepAliveResponse
	leases    []int64
	lost      map[int64]bool
	crashed   bool
	disturbed bool // a claim of it may have ended without its doing
	calls     []*simCall
	counts    map[string]int
	wg        sync.WaitGroup
}

func (x *explorer) startProcess(name string) *simProcess {
	p := &simProcess{x: x, name: name, renewals: make(chan *etcdserverpb.LeaseKeepAliveResponse), lost: make(map[int64]bool), counts: make(map[string]int)}
	p.life, p.kill = context.WithCancel(context.Background())
	p.lease = clientv3.NewLeaseFromLeaseClient(simLease{p: p}, nil, 1000*time.Hour)
	log := slog.New(slog.DiscardHandler)
	p.store = claim.NewEtcd(clientv3.NewKVFromKVClient(simKV{p: p}, nil), p.lease, claim.Options{
		Role: "r", TTL: time.Hour, Log: log, Work: p.life, Life: p.life,
	})
	p.pipeline = &consume.Pipeline{
		Service: name, Claims: claim.NewKeeper(p.store, claim.NewCache(10, 0)), RequireID: true,
		Handlers: map[string]consume.Handler{"t": p.handle}, Counter: p, Log: log,
		MaxAttempts: 1, Timeout: 1000 * time.Hour, Slots: make(consume.Slots, 2),
	}
	return p
}

// end lets the process go without a word, and waits for its goroutines.
func (p *simProcess) end() {
	p.kill()
	p.wg.Wait()
	p.store.Close()
	p.lease.Close()
}

// lose ends the keep-alive of a lease.
func (p *simProcess) lose(lease int64) {
	p.lost[lease], p.disturbed = true, true
	p.renewals <- &etcdserverpb.LeaseKeepAliveResponse{ID: lease, TTL: 0}
}

// Count implements consume.Counter.
func (p *simProcess) Count(name string) {
	p.x.mu.Lock()
	defer p.x.mu.Unlock()
	if !p.crashed {
		p.counts[name]++
	}
}

// handle is the work: it takes until the explorer says.
func (p *simProcess) handle(ctx context.Context, job consume.Job) error {
	x := p.x
	x.mu.Lock()
	i := len(x.handled)
	end := make(chan error)
	x.handled = append(x.handled, handled{by: p, token: job.Token, state: "running", end: end})
	x.mu.Unlock()
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		x.mu.Lock()
		defer x.mu.Unlock()
		x.handled[i].state = "cancelled"
		return ctx.Err()
	}
}

// simCall is a request that waits for the explorer.
type simCall struct {
	p          *simProcess
	kind, what string
	apply      func() (any, error)
	answered   chan simAnswer
}

type simAnswer struct {
	resp any
	err  error
}

func (p *simProcess) call(ctx context.Context, kind, what string, apply func() (any, error)) (any, error) {
	c := &simCall{p: p, kind: kind, what: what, apply: apply, answered: make(chan simAnswer, 1)}
	p.x.mu.Lock()
	p.x.owners[p.store.Instance()] = p.name
	c.what = kind + shorten(strings.ReplaceAll(what, p.store.Instance(), p.name))
	p.calls = append(p.calls, c)
	p.x.mu.Unlock()
	select {
	case a := <-c.answered:
		return a.resp, a.err
	case <-ctx.Done():
		p.x.mu.Lock()
		p.calls = slices.DeleteFunc(p.calls, func(other *simCall) bool { return other == c })
		p.x.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (c *simCall) answer(resp any, err error) {
	c.p.calls = slices.DeleteFunc(c.p.calls, func(other *simCall) bool { return other == c })
	c.answered <- simAnswer{resp, err}
}

func (p *simProcess) pending() []*simCall {
	if p.crashed {
		return nil
	}
	return slices.SortedStableFunc(slices.Values(p.calls), func(a, b *simCall) int { return strings.Compare(a.what, b.what) })
}
