package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/harness"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// faultEnv is the env of a test that breaks things. It has its own etcd and its own virtual
// host or broker, behind proxies, two replicas of orders that post to a receiver, and a
// steady stream of events.
type faultEnv struct {
	*env
	brokers           []string // where events are published, tried in turn
	members           []*stack.Etcd
	etcdServer        *stack.Etcd // the only member; nil if there are several
	toRabbit, toEtcd  *proxy
	receiver          *receiver
	replicas          []*service
	growing           sync.Mutex // guards published while publishing
	published         int
	publishing        sync.WaitGroup
	stopPublishing    context.CancelFunc
	long              []span // outages longer than CLAIM_TTL
	copiesOfEachEvent int
	pause             time.Duration // between two bursts of events
}

// span is a period of time.
type span struct{ from, to time.Time }

func newFaultEnv(t *testing.T, vars ...string) *faultEnv {
	t.Helper()
	return newFaultEnvWith(t, stack.EtcdOptions{}, nil, vars...)
}

func newFaultEnvWith(t *testing.T, o stack.EtcdOptions, answer func(post) int, vars ...string) *faultEnv {
	t.Helper()
	return newFaultEnvOn(t, startMembers(t, 1, o), answer, vars...)
}

// startMembers starts an etcd of n members. It makes the test parallel.
func startMembers(t *testing.T, n int, o stack.EtcdOptions) []*stack.Etcd {
	t.Helper()
	t.Parallel() // it shares nothing
	return startEtcdMembers(t, n, o)
}

func startEtcdMembers(t testing.TB, n int, o stack.EtcdOptions) []*stack.Etcd {
	t.Helper()
	members, err := stack.StartEtcdCluster(deadline(t), t.TempDir(), n, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		t.Cleanup(func() { m.Close() })
	}
	return members
}

// newFaultEnvOn returns a faultEnv with that etcd, and with a virtual host of its own on
// the shared broker.
func newFaultEnvOn(t testing.TB, members []*stack.Etcd, answer func(post) int, vars ...string) *faultEnv {
	t.Helper()
	return newFaultEnvAt(t, shared.rabbit.URL()+newVhost(t), members, answer, vars...)
}

// startRabbit starts a broker for a test that breaks it.
func startRabbit(t *testing.T) *stack.Rabbit {
	t.Helper()
	rabbit, err := stack.StartRabbit(deadline(t), filepath.Join(t.TempDir(), "rabbit"), stack.RabbitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rabbit.Close() })
	return rabbit
}

// newFaultEnvAt returns a faultEnv with these servers, which nothing else may use. There is a proxy only to a
// single member of etcd, and none to several.
func newFaultEnvAt(t testing.TB, amqpURL string, members []*stack.Etcd, answer func(post) int, vars ...string) *faultEnv {
	t.Helper()
	w := &faultEnv{env: newEnvOn(t, amqpURL, members...), brokers: []string{amqpURL}, members: members,
		copiesOfEachEvent: 2, pause: 20 * time.Millisecond}
	w.toRabbit = w.proxyBroker()
	w.amqpURL += "?heartbeat=2"
	if len(members) == 1 {
		w.etcdServer = members[0]
		w.toEtcd = newProxy(t, members[0].Endpoint())
		w.etcdEndpoints = w.toEtcd.Listen
	}
	if answer == nil {
		answer = func(post) int {
			<-time.After(2 * time.Millisecond)
			return http.StatusOK
		}
	}
	w.receiver = newReceiver(t, answer)
	w.topology("orders")
	for range 2 {
		s := w.start("orders", append([]string{
			"ENABLE_ETCD=true", "WEBHOOK_URL=" + w.receiver.URL, "CLAIM_TTL=4s", "PREFETCH=100",
		}, vars...)...)
		s.waitLog("msg=consuming")
		w.replicas = append(w.replicas, s)
	}
	return w
}

// publishSteadily publishes bursts of events, each event copiesOfEachEvent times, until
// finish. It publishes nothing while the broker is unreachable.
func (w *faultEnv) publishSteadily() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stopPublishing = cancel
	w.publishing.Go(func() {
		tick := time.NewTicker(w.pause)
		defer tick.Stop()
		for ctx.Err() == nil {
			w.publishUntilBroken(ctx, tick)
			<-tick.C
		}
	})
}

// burst is the number of events that are published and confirmed together.
const burst = 5

// fresh returns the number of an event that has not been published yet.
func (w *faultEnv) fresh() int {
	w.growing.Lock()
	defer w.growing.Unlock()
	return w.published + burst
}

// publishUntilBroken publishes on one connection until it breaks. An event that was not
// confirmed is published again on the next connection: another copy does no harm.
func (w *faultEnv) publishUntilBroken(ctx context.Context, tick *time.Ticker) {
	var publisher *harness.Publisher
	err := errNotYet
	for i := 0; i < len(w.brokers) && err != nil; i++ {
		publisher = &harness.Publisher{URL: w.brokers[i]}
		err = publisher.Open(ctx)
	}
	if err != nil {
		return
	}
	defer publisher.Close()
	for ctx.Err() == nil {
		var messages []amqp.Publishing
		for range w.copiesOfEachEvent {
			for i := range burst {
				messages = append(messages, plumber(fmt.Sprintf(`{"type":"new_order","id":"w%d"}`, w.published+i)))
			}
		}
		if publisher.Publish(context.Background(), messages...) != nil {
			return
		}
		w.growing.Lock()
		w.published += burst
		w.growing.Unlock()
		<-tick.C
	}
}

// progress waits until the receiver has n more posts than now.
func (w *faultEnv) progress(n int) {
	w.t.Helper()
	goal := len(w.receiver.all()) + n
	w.receiver.wait(w.t, fmt.Sprintf("%d more posts", n), func(posts []post) bool { return len(posts) >= goal })
}

// healthy waits until both replicas consume and finish events again.
func (w *faultEnv) healthy() {
	w.t.Helper()
	before := make([]int, len(w.replicas))
	for i, s := range w.replicas {
		s.alive()
		s.waitLog("msg=consuming")
		before[i] = s.log.count("msg=processed")
	}
	for i, s := range w.replicas {
		s.waitLogs(before[i]+20, "msg=processed")
	}
}

// finish stops publishing and waits until everything is done. It checks that both
// replicas are alive and stops them. Then it checks that no event was lost or
// dead-lettered, and that only events that were under way during a long outage were
// done twice.
func (w *faultEnv) finish() {
	w.t.Helper()
	w.stopPublishing()
	w.publishing.Wait()
	eventually(w.t, "everything done", func() error { return w.allDone("orders", w.published) })
	for _, s := range w.replicas {
		s.alive()
		s.stop()
	}
	lost, twice := w.receiver.accounts("w", w.published)
	allowed := w.underWay()
	w.t.Logf("%d events, %d done twice (allowed: %d), %d lost", w.published, twice, allowed, lost)
	if lost > 0 || twice > allowed {
		w.t.Errorf("of %d events %d were lost, %d done twice (allowed: 0, %d)", w.published, lost, twice, allowed)
	}
	if n := max(0, w.depth("orders-queue.dead")); n > 0 {
		w.t.Errorf("%d dead letters", n)
	}
	w.wantAllDone("orders", w.published)
}

// underWay counts the ids that were done more than once, the first time during an outage
// longer than CLAIM_TTL or in the second before it. Their claims ended before they could
// be recorded.
func (w *faultEnv) underWay() int {
	first, tokens := make(map[string]time.Time), make(map[string]map[int64]bool)
	for _, p := range w.receiver.all() {
		if at, ok := first[p.ID]; !ok || p.Began.Before(at) {
			first[p.ID] = p.Began
		}
		if tokens[p.ID] == nil {
			tokens[p.ID] = make(map[int64]bool)
		}
		tokens[p.ID][p.Token] = true
	}
	n := 0
	for id, at := range first {
		for _, s := range w.long {
			if len(tokens[id]) > 1 && at.After(s.from.Add(-time.Second)) && at.Before(s.to) {
				n++
			}
		}
	}
	return n
}

// etcdLeader waits until all members follow one leader, and returns it.
func (w *faultEnv) etcdLeader() (leader *stack.Etcd) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), maxWait)
	defer cancel()
	eventually(w.t, "a leader of etcd", func() error {
		leaders := make(map[uint64]bool)
		for _, m := range w.members {
			status, err := w.etcd.Status(ctx, m.Endpoint())
			if err != nil {
				return err
			}
			if leaders[status.Leader] = true; status.Leader == status.Header.MemberId {
				leader = m
			}
		}
		if len(leaders) != 1 || leaders[0] {
			return fmt.Errorf("members follow %v", leaders)
		}
		return nil
	})
	return leader
}

// goneOn waits until an event that was published after the fault is done. It returns how
// long that took, and the longest period in it in which no work was begun.
func (w *faultEnv) goneOn(fault time.Time) (took, silence time.Duration) {
	w.t.Helper()
	fresh := w.fresh()
	done := func(p post) bool {
		n, err := strconv.Atoi(strings.TrimPrefix(p.ID, "w"))
		return err == nil && n >= fresh && p.Status/100 == 2
	}
	w.receiver.wait(w.t, "an event published after the fault", func(posts []post) bool {
		return slices.ContainsFunc(posts, done)
	})
	posts := w.receiver.all()
	at := posts[slices.IndexFunc(posts, done)].Began
	return at.Sub(fault), longestSilence(posts, fault, at)
}

// longestSilence returns the longest period between two instants in which no work was
// begun.
func longestSilence(posts []post, from, to time.Time) (longest time.Duration) {
	begins := []time.Time{from, to}
	for _, p := range posts {
		if p.Began.After(from) && p.Began.Before(to) {
			begins = append(begins, p.Began)
		}
	}
	slices.SortFunc(begins, time.Time.Compare)
	for i, at := range begins[1:] {
		longest = max(longest, at.Sub(begins[i]))
	}
	return longest
}

// wantLog checks that the log of each replica has from least to most lines with all
// parts.
func (w *faultEnv) wantLog(least, most int, parts ...string) {
	w.t.Helper()
	for _, s := range w.replicas {
		if n := s.log.count(parts...); n < least || n > most {
			w.t.Errorf("%s has %d lines with %q, want %d to %d", s.name, n, parts, least, most)
		}
	}
}

// cpu returns the CPU time that a process has used.
func (s *service) cpu() time.Duration {
	stat := readFile(s.t, fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	var user, system int
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}
