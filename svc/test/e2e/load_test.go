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
	replicas, ended   []*service // the present ones, and those before them
	vars              []string   // of the replicas
	publishing        sync.WaitGroup
	stopPublishing    context.CancelFunc
	copiesOfEachEvent int
	pause             time.Duration // between two bursts of events

	mu        sync.Mutex // guards published while publishing, and windows
	published int
	windows   []window // the faults that explain why work was done twice

	tokensGoBack bool // an old token does not tell that the work is old
}

func newFaultEnv(t *testing.T, vars ...string) *faultEnv {
	t.Helper()
	t.Parallel() // it shares nothing
	return newFaultEnvAt(t, shared.rabbit.URL()+newVhost(t), startEtcds(t, 1, stack.EtcdOptions{}), nil, vars...)
}

// startEtcds starts a cluster of n members.
func startEtcds(t testing.TB, n int, o stack.EtcdOptions) []*stack.Etcd {
	t.Helper()
	members, err := stack.StartEtcdCluster(deadline(t), t.TempDir(), n, o)
	must(t, err)
	for _, m := range members {
		t.Cleanup(func() { m.Close() })
	}
	return members
}

// startRabbit starts a broker for a test that breaks or configures it.
func startRabbit(t *testing.T, o stack.RabbitOptions) *stack.Rabbit {
	t.Helper()
	rabbit, err := stack.StartRabbit(deadline(t), filepath.Join(t.TempDir(), "rabbit"), o)
	must(t, err)
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
	w.vars = append([]string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + w.receiver.URL, "CLAIM_TTL=4s", "PREFETCH=100"}, vars...)
	for range 2 {
		s := w.start("orders", w.vars...)
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
		var publisher harness.Publisher
		defer func() { publisher.Close() }()
		for broker := 0; ctx.Err() == nil; <-tick.C {
			messages := harness.NewOrders(harness.IDs("w", w.published, burst)...)
			publisher.URL = w.brokers[broker%len(w.brokers)]
			if publisher.Publish(context.Background(), slices.Repeat(messages, w.copiesOfEachEvent)...) != nil {
				broker++ // an event that was not confirmed is published again: another copy does no harm
				continue
			}
			w.mu.Lock()
			w.published += burst
			w.mu.Unlock()
		}
	})
}

// burst is the number of events that are published and confirmed together.
const burst = 5

// fresh returns the number of an event that has not been published yet.
func (w *faultEnv) fresh() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.published + burst
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

// etcdLeader waits until all members follow one leader, and returns it.
func (w *faultEnv) etcdLeader() (leader *stack.Etcd) {
	w.t.Helper()
	ctx := deadline(w.t)
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

// goneOn waits until an event that was published after the fault is done, and returns how long
// that took.
func (w *faultEnv) goneOn(fault time.Time) (took time.Duration) {
	w.t.Helper()
	fresh := w.fresh()
	w.receiver.wait(w.t, "an event published after the fault", func(posts []post) bool {
		i := slices.IndexFunc(posts, func(p post) bool {
			n, err := strconv.Atoi(strings.TrimPrefix(p.ID, "w"))
			return err == nil && n >= fresh && p.Status/100 == 2
		})
		if i >= 0 {
			took = posts[i].Began.Sub(fault)
		}
		return i >= 0
	})
	return took
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

// wantLog checks that the log of each replica has from least to most lines with all parts.
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
