package e2e

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

var (
	chaosSeed = flag.Uint64("chaos.seed", 0, "of TestChaos's faults; 0: from the time")
	chaosFor  = flag.Duration("chaos.for", 0, "how long TestChaos goes on, once it has had each fault")
)

// TestChaos runs two replicas under a steady load, publishes each event twice, and breaks
// one or two things at a time, drawn with a seed. It accounts for all work that was done
// twice: a fault that explains the repetition must have lasted while the work was done
// or recorded.
//
//	go test ./svc/e2e -run TestChaos -v -chaos.for=10m -timeout=15m -chaos.seed=7
func TestChaos(t *testing.T) {
	seed := cmp.Or(*chaosSeed, uint64(time.Now().UnixNano()))
	t.Logf("-chaos.seed=%d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	c := newChaos(t, seed)
	c.publishSteadily()
	c.progress(200)
	for began := time.Now(); time.Since(began) < *chaosFor || len(c.drawn) < len(c.faults); {
		c.breakSomething(draw)
		c.healthy()
		c.renewed()
	}
	c.finishAndAccount()
}

// renewed waits until the sessions have been renewed. Two short outages without a renewal
// between them would have the effect of a long one.
func (c *chaos) renewed() {
	c.t.Helper()
	eventually(c.t, "renewed sessions", func() error {
		for session, kv := range c.keys("orders").sessions {
			resp, err := c.etcd.TimeToLive(deadline(c.t), clientv3.LeaseID(kv.Lease))
			if err != nil {
				return err
			}
			if left := time.Duration(resp.TTL) * time.Second; left < shortOutage+time.Second {
				return fmt.Errorf("session %s has %v left", session, left)
			}
		}
		return nil
	})
}

const (
	chaosTTL     = 4 * time.Second
	shortOutage  = 1500 * time.Millisecond // less than the remaining time of a renewed lease
	longOutage   = chaosTTL + 2*time.Second
	chaosWorkers = 32 // CONCURRENCY
	chaosHeld    = 100
)

// chaos is a faultEnv that records all work.
type chaos struct {
	*faultEnv
	faults []fault
	deck   []int       // shuffled indexes of the next faults, so that every fault occurs
	away   atomic.Bool // the webhook answers 503
	silent atomic.Bool // the webhook does the work and leaves some posts unanswered
	drawn  map[string]int

	mu         sync.Mutex
	entries    map[string][]work // by id
	unanswered map[string]bool   // ids with a post that was not answered
	refused    int               // posts answered with 503
	asked      int               // posts that repeat work with the same token
	windows    []window
	etcdFrom   time.Time // the beginning of etcd's last outage
	etcdTo     time.Time // its end; zero: it has not ended
}

// work is a post that was carried out.
type work struct {
	token        int64
	began, ended time.Time
}

// fault is a fault that run causes and repairs before it returns.
type fault struct {
	name   string
	domain string // faults of the same domain do not occur together
	run    func(context.Context) error
}

// window is a period in which work may be done without being recorded, so that it may be
// done again.
type window struct {
	reason   string
	from, to time.Time
	most     int // maximum number of ids that it may explain
	used     int // number of ids that it has explained
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{drawn: make(map[string]int), entries: make(map[string][]work), unanswered: make(map[string]bool)}
	answers := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	one := func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		return answers.IntN(n) == 0
	}
	c.faultEnv = newFaultEnvWith(t, stack.EtcdOptions{}, func(p post) int { return c.answer(p, one) },
		fmt.Sprint("CLAIM_TTL=", chaosTTL), fmt.Sprint("PREFETCH=", chaosHeld), fmt.Sprint("CONCURRENCY=", chaosWorkers))
	c.faults = []fault{
		{"replica killed (-9)", "replica", func(context.Context) error { return c.replace(0, "a replica was killed", (*service).kill) }},
		{"other replica killed (-9)", "replica", func(context.Context) error { return c.replace(1, "a replica was killed", (*service).kill) }},
		{"replica stopped (TERM)", "replica", func(context.Context) error { return c.replace(0, "", c.terminate) }},
		{"replica frozen for longer than CLAIM_TTL", "replica", c.freeze},
		{"broker killed (-9)", "broker", func(ctx context.Context) error {
			if err := c.rabbit.Kill(); err != nil {
				return err
			}
			return c.rabbit.Start(ctx)
		}},
		{"broker stopped (TERM)", "broker", func(ctx context.Context) error {
			if err := c.rabbit.Stop(ctx); err != nil {
				return err
			}
			return c.rabbit.Start(ctx)
		}},
		{"broker's packets lost", "broker", c.losePackets},
		{"broker's connections cut", "broker", func(context.Context) error { c.toRabbit.cut(); return c.toRabbit.reopen() }},
		{"broker's connections closed by it", "broker", func(ctx context.Context) error {
			_, err := c.rabbit.Ctl(ctx, "close_all_connections", "chaos")
			return err
		}},
		{"etcd killed (-9)", "etcd", c.outage(false, func(ctx context.Context) error {
			if err := c.etcdServer.Kill(); err != nil {
				return err
			}
			return c.etcdServer.Start(ctx)
		})},
		{"etcd frozen for less than CLAIM_TTL", "etcd", c.outage(false, c.pauseEtcd(shortOutage))},
		{"etcd frozen for longer than CLAIM_TTL", "etcd", c.outage(true, c.pauseEtcd(longOutage))},
		{"etcd cut off", "etcd", c.outage(false, c.cutEtcd(shortOutage))},
		{"etcd cut off for longer than CLAIM_TTL", "etcd", c.outage(true, c.cutEtcd(longOutage))},
		{"etcd's answers lost", "etcd", c.outage(false, func(ctx context.Context) error {
			// Requests arrive, their answers are lost, and then the connection closes.
			if _, err := c.toEtcd.Toxics.AddToxicJson(strings.NewReader(`{"name":"lose","type":"timeout","stream":"downstream","attributes":{"timeout":100}}`)); err != nil {
				return err
			}
			<-time.After(200 * time.Millisecond)
			c.toEtcd.restore()
			return nil
		})},
		{"webhook answers 503", "webhook", c.refuse},
		{"webhook's answers lost", "webhook", c.loseAnswers},
	}
	return c
}

// answer answers the webhook's posts and records the work.
func (c *chaos) answer(p post, one func(n int) bool) int {
	began := time.Now()
	if c.away.Load() {
		c.mu.Lock()
		c.refused++
		c.mu.Unlock()
		return http.StatusServiceUnavailable
	}
	<-time.After(10 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	same := slices.IndexFunc(c.entries[p.ID], func(w work) bool { return w.token == p.Token })
	if same >= 0 {
		c.asked++
		c.entries[p.ID][same].ended = time.Now()
	} else {
		c.entries[p.ID] = append(c.entries[p.ID], work{p.Token, began, time.Now()})
	}
	// At most one answer per id is lost.
	if c.silent.Load() && !c.unanswered[p.ID] && one(3) {
		c.unanswered[p.ID] = true
		panic(http.ErrAbortHandler)
	}
	return http.StatusOK
}

// breakSomething draws one fault, or two of different domains that overlap, and returns
// when they are repaired.
func (c *chaos) breakSomething(draw *rand.Rand) {
	c.t.Helper()
	if len(c.deck) < 2 {
		c.deck = append(c.deck, draw.Perm(len(c.faults))...)
	}
	faults := []fault{c.faults[c.deck[0]]}
	if second := c.faults[c.deck[1]]; draw.IntN(3) == 0 && second.domain != faults[0].domain {
		faults = append(faults, second)
	}
	c.deck = c.deck[len(faults):]
	delay := time.Duration(draw.IntN(500)) * time.Millisecond // between the two faults
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	var group errgroup.Group
	for i, f := range faults {
		c.drawn[f.name]++
		group.Go(func() error {
			<-time.After(time.Duration(i) * delay)
			if err := f.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		c.t.Fatal(err)
	}
}

// replace ends a replica and starts another in its place.
func (c *chaos) replace(i int, reason string, end func(*service)) error {
	asked := time.Now()
	end(c.replicas[i])
	if _, away := c.etcdAway(asked); reason != "" || away {
		c.allowDuplicates(cmp.Or(reason, "a replica stopped"), asked, time.Now(), chaosWorkers)
	}
	c.replicas[i] = c.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+c.receiver.URL,
		fmt.Sprint("CLAIM_TTL=", chaosTTL), fmt.Sprint("PREFETCH=", chaosHeld), fmt.Sprint("CONCURRENCY=", chaosWorkers))
	return nil
}

// etcdAway reports whether etcd was unreachable at that time or later, and since when.
func (c *chaos) etcdAway(at time.Time) (since time.Time, was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.etcdFrom, !c.etcdFrom.IsZero() && (c.etcdTo.IsZero() || c.etcdTo.After(at))
}

func (c *chaos) terminate(s *service) {
	s.signal(syscall.SIGTERM)
	<-s.exited
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Errorf("%s: exit status %d after TERM", s.name, code)
	}
}

// freeze pauses a replica for longer than CLAIM_TTL.
func (c *chaos) freeze(context.Context) error {
	from := time.Now()
	c.replicas[1].signal(syscall.SIGSTOP)
	<-time.After(longOutage)
	c.replicas[1].signal(syscall.SIGCONT)
	c.allowDuplicates("a replica was frozen for longer than CLAIM_TTL", from, time.Now().Add(2*time.Second), 2*chaosHeld)
	return nil
}

// losePackets drops the broker's packets until a replica has missed its heartbeats.
func (c *chaos) losePackets(context.Context) error {
	s := c.replicas[0]
	before := s.log.count("no connection to the broker")
	c.toRabbit.blackhole()
	_, err := s.log.wait(maxWait, before+1, []string{"no connection to the broker"})
	c.toRabbit.restore()
	c.toRabbit.cut()
	return errors.Join(err, c.toRabbit.reopen())
}

func (c *chaos) pauseEtcd(d time.Duration) func(context.Context) error {
	return func(context.Context) error {
		if err := c.etcdServer.Pause(); err != nil {
			return err
		}
		<-time.After(d)
		return c.etcdServer.Resume()
	}
}

func (c *chaos) cutEtcd(d time.Duration) func(context.Context) error {
	return func(context.Context) error {
		c.toEtcd.cut()
		<-time.After(d)
		return c.toEtcd.reopen()
	}
}

// outage wraps a fault of etcd, during which nothing can be recorded.
func (c *chaos) outage(longerThanTTL bool, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		from := time.Now()
		c.mu.Lock()
		c.etcdFrom, c.etcdTo = from, time.Time{}
		c.mu.Unlock()
		err := run(ctx)
		to := time.Now().Add(2 * time.Second) // until the replicas notice the end
		c.mu.Lock()
		c.etcdTo = to
		if longerThanTTL {
			// All ids that either replica had claimed may be done again.
			c.windows = append(c.windows, window{"etcd was away for longer than CLAIM_TTL", from.Add(-time.Second), to, 4 * chaosHeld, 0})
		}
		c.mu.Unlock()
		return err
	}
}

func (c *chaos) refuse(context.Context) error {
	c.away.Store(true)
	<-time.After(2 * time.Second)
	c.away.Store(false)
	return nil
}

// loseAnswers loses the answers to 30 posts.
func (c *chaos) loseAnswers(ctx context.Context) error {
	const answers = 30
	unanswered := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.unanswered)
	}
	before := unanswered()
	c.silent.Store(true)
	defer c.silent.Store(false)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for unanswered() < before+answers {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// allowDuplicates allows work of a replica to be done again if it ran between from and
// to, up to most ids, or waited for its record in the second before from. While etcd is
// unreachable, that is all work of the ids that the replica has claimed.
func (c *chaos) allowDuplicates(reason string, from, to time.Time, most int) {
	w := window{reason, from.Add(-time.Second), to, most + 2*120, 0}
	if since, was := c.etcdAway(from); was && since.Before(w.from) {
		away := since.Add(-time.Second)
		w = window{reason + " while etcd was away", away, to, max(w.most, 2*chaosHeld), 0}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = append(c.windows, w)
}

// finishAndAccount waits until everything is done and prints the accounts.
func (c *chaos) finishAndAccount() {
	t := c.t
	t.Helper()
	c.stopPublishing()
	c.publishing.Wait()
	eventually(t, "everything done, no claim, an empty queue", func() error { return c.allDone("orders", c.published) })
	for _, s := range c.replicas {
		s.alive()
		s.stop()
	}
	c.wantAllDone("orders", c.published)
	dead := max(0, c.depth("orders-queue.dead"))

	c.mu.Lock()
	defer c.mu.Unlock()
	lost, twice := 0, 0
	for i := range c.published {
		id := fmt.Sprint("w", i)
		entries := c.entries[id]
		if len(entries) == 0 {
			lost++
			continue
		}
		slices.SortFunc(entries, func(a, b work) int { return cmp.Compare(a.token, b.token) })
		for i, w := range entries[:len(entries)-1] {
			twice++
			if !c.account(w) {
				t.Errorf("%s was done with token %d from %s to %s and again with %d at %s, and no fault explains it",
					id, w.token, clock(w.began), clock(w.ended), entries[i+1].token, clock(entries[i+1].began))
			}
		}
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.drawn)) {
		fmt.Fprintf(&out, "  %3d %s\n", c.drawn[name], name)
	}
	fmt.Fprintf(&out, "%d done, %d of their posts asked again with the same token, %d refused\n", c.published-lost, c.asked, c.refused)
	fmt.Fprintf(&out, "%d done twice:\n", twice)
	for reason, n := range c.reasons() {
		fmt.Fprintf(&out, "  %3d of at most %d because %s (%d times)\n", n.used, n.most, reason, n.times)
	}
	t.Logf("%d events, each published twice; faults:\n%s%d lost, %d dead letters", c.published, &out, lost, dead)
	for _, w := range c.windows {
		if w.used > w.most {
			t.Errorf("%d ids were done twice because %s at %s, at most %d are allowed", w.used, w.reason, clock(w.to), w.most)
		}
	}
	if lost > 0 || dead > 0 {
		t.Errorf("%d events were lost, %d dead-lettered", lost, dead)
	}
}

// account attributes work that was done again to a window. It returns false if there is
// none.
func (c *chaos) account(w work) bool {
	for i := range c.windows {
		if f := &c.windows[i]; w.began.Before(f.to) && w.ended.After(f.from) {
			f.used++
			return true
		}
	}
	return false
}

type total struct{ used, most, times int }

func (c *chaos) reasons() map[string]total {
	totals := make(map[string]total)
	for _, w := range c.windows {
		n := totals[w.reason]
		totals[w.reason] = total{n.used + w.used, n.most + w.most, n.times + 1}
	}
	return totals
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }

// A post whose answer was lost is repeated with the same token, even if the connection to
// the broker is lost before the next attempt: the process still has the claim, so the
// token must not suggest another owner.
func TestAnswerLostBeforeReconnect(t *testing.T) {
	b := newProxiedEnv(t)
	posts := 0
	lost := make(chan struct{})
	receiver := newReceiver(t, func(post) int {
		switch posts++; {
		case posts <= 5: // until the pauses between the attempts have grown to seconds
			return http.StatusServiceUnavailable
		case posts == 6:
			close(lost)
			panic(http.ErrAbortHandler)
		}
		return http.StatusOK
	})
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL)
	s.waitLog("msg=consuming")
	b.publishBodies(orders("al", 1)...)
	select {
	case <-lost:
	case <-time.After(maxWait):
		t.Fatal("there is no sixth post")
	}
	b.toRabbit.cut()
	s.waitLog("no connection to the broker")
	b.toRabbit.reconnect()
	eventually(t, "it is done", func() error { return b.allDone("orders", 1) })
	s.stop()
	tokens := make(map[int64]int)
	for _, p := range receiver.all() {
		tokens[p.Token]++
	}
	if len(tokens) != 1 {
		t.Errorf("posts by token: %v, want one token", tokens)
	}
}
