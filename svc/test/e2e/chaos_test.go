package e2e

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
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
// one or two things at a time, drawn with a seed. A fault must explain all work that was done
// twice.
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
	t.Logf("faults: %v", c.drawn)
	c.finish()
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
	silent      atomic.Bool // the webhook does the work and leaves some posts unanswered
	drawn       map[string]int
	answers     *rand.Rand // decides which answers are lost

	// Guarded by faultEnv.mu:
	unanswered map[string]bool // ids with a post that was not answered
	etcdFrom   time.Time       // the beginning of etcd's last outage
	etcdTo     time.Time       // its end; zero: it has not ended
}

// fault is a fault that run causes and repairs before it returns.
type fault struct {
	name   string
	domain string // faults of the same domain do not occur together
	run    func(context.Context) error
}

func newChaos(t *testing.T, seed uint64) *chaos {
	t.Parallel() // it shares nothing
	c := &chaos{drawn: make(map[string]int), unanswered: make(map[string]bool), answers: rand.New(rand.NewPCG(seed, 1))}
	c.rabbit = startRabbit(t, stack.RabbitOptions{})
	c.faultEnv = newFaultEnvAt(t, c.rabbit.URL(), startEtcds(t, 1, stack.EtcdOptions{}), c.answer,
		"LOG_LEVEL=debug", fmt.Sprint("CLAIM_TTL=", chaosTTL), fmt.Sprint("PREFETCH=", chaosHeld), fmt.Sprint("CONCURRENCY=", chaosWorkers))
	cutEtcd := func() error { c.toEtcd.cut(); return nil }
	down := func(down bool) func() error { return func() error { c.webhookDown.Store(down); return nil } }
	c.faults = []fault{
		{"replica killed (-9)", "replica", func(context.Context) error { return c.replace(0, "a replica was killed", (*service).kill) }},
		{"other replica killed (-9)", "replica", func(context.Context) error { return c.replace(1, "a replica was killed", (*service).kill) }},
		{"replica stopped (TERM)", "replica", func(context.Context) error { return c.replace(0, "", c.terminate) }},
		{"replica frozen for longer than CLAIM_TTL", "replica", c.freeze},
		{"broker killed (-9)", "broker", func(ctx context.Context) error { return errors.Join(c.rabbit.Kill(), c.rabbit.Start(ctx)) }},
		{"broker stopped (TERM)", "broker", func(ctx context.Context) error { return errors.Join(c.rabbit.Stop(ctx), c.rabbit.Start(ctx)) }},
		{"broker's packets lost", "broker", c.losePackets},
		{"broker's connections cut", "broker", func(context.Context) error { c.toRabbit.cut(); return c.toRabbit.reopen() }},
		{"broker's connections closed by it", "broker", func(ctx context.Context) error {
			_, err := c.rabbit.Ctl(ctx, "close_all_connections", "chaos")
			return err
		}},
		{"etcd killed (-9)", "etcd", c.outage(false, func(ctx context.Context) error {
			return errors.Join(c.etcdServer.Kill(), c.etcdServer.Start(ctx))
		})},
		{"etcd frozen for less than CLAIM_TTL", "etcd", c.outage(false, during(shortOutage, c.etcdServer.Pause, c.etcdServer.Resume))},
		{"etcd frozen for longer than CLAIM_TTL", "etcd", c.outage(true, during(longOutage, c.etcdServer.Pause, c.etcdServer.Resume))},
		{"etcd cut off", "etcd", c.outage(false, during(shortOutage, cutEtcd, c.toEtcd.reopen))},
		{"etcd cut off for longer than CLAIM_TTL", "etcd", c.outage(true, during(longOutage, cutEtcd, c.toEtcd.reopen))},
		{"etcd's answers lost", "etcd", c.outage(false, func(context.Context) error {
			// Requests arrive, their answers are lost, and then the connection closes.
			c.toEtcd.toxic(`{"name":"lose","type":"timeout","stream":"downstream","attributes":{"timeout":100}}`)
			<-time.After(200 * time.Millisecond)
			c.toEtcd.restore()
			return nil
		})},
		{"webhook answers 503", "webhook", during(2*time.Second, down(true), down(false))},
		{"webhook's answers lost", "webhook", c.loseAnswers},
	}
	return c
}

// answer answers the webhook's posts. At most one answer per id is lost.
func (c *chaos) answer(p post) int {
	if c.webhookDown.Load() {
		return http.StatusServiceUnavailable
	}
	<-time.After(10 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent.Load() && !c.unanswered[p.ID] && c.answers.IntN(3) == 0 {
		c.unanswered[p.ID] = true
		return 0
	}
	return http.StatusOK
}
