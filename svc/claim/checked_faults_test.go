package claim_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// link is the network between a claimer and a member.
type link struct {
	address  string           // of the proxy, for the claimer
	upstream string           // of the member
	proxy    *toxiproxy.Proxy // nil: the link cannot be broken
	faults   atomic.Int32     // present faults of the link and of its member
}

// cutOff reports whether no link works.
func cutOff(links []*link) bool {
	return !slices.ContainsFunc(links, func(l *link) bool { return l.faults.Load() == 0 })
}

// newLinks returns the links of each claimer. Each link has its own proxy.
func newLinks(t *testing.T, etcd []*stack.Etcd) (links [claimers][]*link) {
	t.Helper()
	for i := range links {
		for _, e := range etcd {
			port, err := stack.ReservePort()
			if err != nil {
				t.Fatal(err)
			}
			l := &link{address: port.Addr(), upstream: e.Endpoint()}
			l.open(t)
			t.Cleanup(func() {
				l.proxy.Stop()
				port.Close()
			})
			links[i] = append(links[i], l)
		}
	}
	return links
}

// open lets connections through from now on. It makes a new proxy, because toxiproxy
// takes up to five seconds per packet to remove a delay from open connections.
func (l *link) open(t *testing.T) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l.proxy = toxiproxy.NewProxy(server, l.upstream, l.address, l.upstream)
	if err := stack.Relisten(l.proxy.Start); err != nil {
		t.Error(err)
	}
}

// networkFaults are the toxics of each fault of a link; nil: it is cut.
var networkFaults = [][]string{
	nil,
	{`"type":"latency","stream":"downstream","attributes":{"latency":500,"jitter":490}`}, // answers arrive up to a second late
	{`"type":"timeout","stream":"upstream"`},
	{`"type":"timeout","stream":"downstream"`}, // requests take effect, but their answers are lost
	{`"type":"timeout","stream":"upstream"`, `"type":"timeout","stream":"downstream"`},
}

// breakNetwork cuts, silences or delays links, one after the other, until ctx ends.
func breakNetwork(ctx context.Context, t *testing.T, claimers [][]*link) {
	for pause(ctx, between(0, ttl/2)) {
		links := claimers[rand.IntN(len(claimers))]
		if rand.IntN(3) == 0 { // only the link to one member
			links = links[rand.IntN(len(links)):][:1]
		}
		toxics := networkFaults[rand.IntN(len(networkFaults))]
		for _, l := range links {
			if l.faults.Add(1); toxics == nil {
				l.proxy.Stop()
			}
			for _, toxic := range toxics {
				if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader("{" + toxic + "}")); err != nil {
					t.Error(err)
				}
			}
		}
		pause(ctx, briefOrLong())
		for _, l := range links {
			l.proxy.Stop()
			l.open(t)
			l.faults.Add(-1)
		}
	}
}

// breakMembers kills or freezes members of etcd, one after the other, until ctx
// ends.
func breakMembers(ctx context.Context, t *testing.T, etcd []*stack.Etcd, claimers [][]*link) {
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for pause(ctx, between(ttl/2, 2*ttl)) {
		m := rand.IntN(len(etcd))
		for _, links := range claimers {
			links[m].faults.Add(1)
		}
		if rand.IntN(2) == 0 {
			frozen := briefOrLong()
			if len(etcd) > 1 && leads(ctx, etcd[m]) {
				// A leader that was frozen for longer and was replaced revokes all
				// leases when it resumes: etcd counts the time in which it was
				// frozen as time without renewals.
				frozen = between(10*time.Millisecond, ttl/4)
			}
			must(etcd[m].Pause())
			pause(ctx, frozen)
			must(etcd[m].Resume())
		} else {
			must(etcd[m].Kill())
			pause(ctx, between(0, ttl/4))
			must(etcd[m].Start(context.WithoutCancel(ctx)))
		}
		for _, links := range claimers {
			links[m].faults.Add(-1)
		}
	}
}

// leads reports whether a member is the leader. It returns true if the member does not
// answer.
func leads(ctx context.Context, e *stack.Etcd) bool {
	ctx, cancel := context.WithTimeout(ctx, ttl/2)
	defer cancel()
	client, err := e.Client()
	if err != nil {
		return true
	}
	defer client.Close()
	resp, err := client.Status(ctx, e.Endpoint())
	return err != nil || resp.Leader == resp.Header.MemberId
}

// briefOrLong draws the duration of a fault. A session survives the brief ones.
func briefOrLong() time.Duration {
	if rand.IntN(3) == 0 {
		return between(ttl, 2*ttl)
	}
	return between(10*time.Millisecond, ttl/4)
}

// between draws a duration of at least from and less than to.
func between(from, to time.Duration) time.Duration { return from + rand.N(to-from) }

// pause waits for d. It returns false if ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// breakThings breaks links and members until stop is called. When stop returns, all
// of them work again.
func breakThings(t *testing.T, etcd []*stack.Etcd, links [claimers][]*link) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var breaking sync.WaitGroup
	breaking.Go(func() { breakMembers(ctx, t, etcd, links[:]) })
	const parts = 4
	for i := range parts {
		breaking.Go(func() { breakNetwork(ctx, t, links[i*claimers/parts:(i+1)*claimers/parts]) })
	}
	return func() {
		cancel()
		breaking.Wait()
	}
}
