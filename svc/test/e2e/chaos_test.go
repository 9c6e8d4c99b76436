package e2e

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
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
//	go test ./svc/test/e2e -run TestChaos -v -chaos.for=10m -timeout=15m -chaos.seed=7
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
	rabbit      *stack.Rabbit
	faults      []fault
	deck        []int       // shuffled indexes of the next faults, so that every fault occurs
	webhookDown atomic.Bool // the webhook answers 503
	ended       []*service  // the replicas before the present ones
	silent      atomic.Bool // the webhook does the work and leaves some posts unanswered
	drawn       map[string]int

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
	answered     bool // otherwise its replica does not know that the work was done
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
	members := startMembers(t, 1, stack.EtcdOptions{})
	c.rabbit = startRabbit(t)
	c.faultEnv = newFaultEnvAt(t, c.rabbit.URL(), members, func(p post) int { return c.answer(p, one) },
		"LOG_LEVEL=debug", fmt.Sprint("CLAIM_TTL=", chaosTTL), fmt.Sprint("PREFETCH=", chaosHeld), fmt.Sprint("CONCURRENCY=", chaosWorkers))
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
	if c.webhookDown.Load() {
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
	} else {
		same = len(c.entries[p.ID])
		c.entries[p.ID] = append(c.entries[p.ID], work{token: p.Token, began: began})
	}
	w := &c.entries[p.ID][same]
	w.ended = time.Now()
	// At most one answer per id is lost.
	if c.silent.Load() && !c.unanswered[p.ID] && one(3) {
		c.unanswered[p.ID] = true
		panic(http.ErrAbortHandler)
	}
	w.answered = true
	return http.StatusOK
}
