package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/test/stack"
	"golang.org/x/sync/errgroup"
)

// cluster is a faultEnv of three brokers and three etcd members.
type cluster struct {
	*faultEnv
	nodes []*stack.Rabbit
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	t.Parallel() // it shares nothing
	members, first := startEtcds(t, 3, stack.EtcdOptions{}), startRabbit(t, stack.RabbitOptions{})
	nodes := []*stack.Rabbit{first, nil, nil}
	dir := t.TempDir()
	var joining errgroup.Group
	for i := range nodes[1:] {
		joining.Go(func() (err error) {
			nodes[i+1], err = stack.StartRabbit(deadline(t), filepath.Join(dir, fmt.Sprint("rabbit", i)), stack.RabbitOptions{Join: first})
			return err
		})
	}
	err := joining.Wait()
	for _, n := range nodes[1:] {
		if n != nil {
			t.Cleanup(func() { n.Close() })
		}
	}
	must(t, err)

	c := &cluster{
		faultEnv: &faultEnv{env: newEnvOn(t, first.URL(), members...), members: members, copiesOfEachEvent: 2,
			pause: 100 * time.Millisecond}, // six servers on one machine
		nodes: nodes,
	}
	for _, n := range nodes {
		c.brokers = append(c.brokers, n.URL())
	}
	c.amqpURL = strings.Join(c.brokers, ",")
	// The second node declares the queues, so that it leads them: the first leader of a
	// quorum queue is the node that declared it.
	c.directAMQP = nodes[1].URL()
	c.channel(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare("events", "topic", true, false, false, false, nil); err != nil {
			return err
		}
		for _, queue := range []string{"orders-queue", "orders-queue.dead"} {
			if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
				return err
			}
		}
		return ch.QueueBind("orders-queue", "#", "events", false, nil)
	})
	return c
}

// queues returns a property of each queue, by its name, from a node that is never killed.
func (c *cluster) queues(column string) map[string]string {
	c.t.Helper()
	values, err := c.nodes[2].Queues(c.t.Context(), column)
	must(c.t, err)
	return values
}

// queueLeader waits until one of the nodes leads orders-queue, and returns it.
func (c *cluster) queueLeader() (leader *stack.Rabbit) {
	c.t.Helper()
	eventually(c.t, "a leader of the queue", func() error {
		name := c.queues("leader")["orders-queue"]
		for _, n := range c.nodes {
			if n.Name() == name {
				leader = n
				return nil
			}
		}
		return fmt.Errorf("%q leads", name)
	})
	return leader
}

// allOnline waits until the replica of orders-queue on each node is online.
func (c *cluster) allOnline() {
	c.t.Helper()
	eventually(c.t, "all nodes online", func() error {
		online := c.queues("online")["orders-queue"]
		for _, n := range c.nodes {
			if !strings.Contains(online, n.Name()) {
				return fmt.Errorf("only %s are", online)
			}
		}
		return nil
	})
}

// Nodes of the broker and members of etcd are killed, the leaders first, and started
// again. Every id is done once, nothing is lost, and no service is restarted.
func TestClusters(t *testing.T) {
	c := newCluster(t)
	c.receiver = newReceiver(t, func(post) int {
		<-time.After(2 * time.Millisecond)
		return http.StatusOK
	})
	// The second replica connects to the node that leads the queue, the first to
	// another one.
	for _, order := range [][]int{{0, 1, 2}, {1, 2, 0}} {
		urls := make([]string, len(order))
		for i, n := range order {
			urls[i] = c.brokers[n]
		}
		s := c.start("orders", "ENABLE_ETCD=true", "QUEUE_TYPE=quorum", "WEBHOOK_URL="+c.receiver.URL,
			"CLAIM_TTL=4s", "PREFETCH=100", "AMQP_URL="+strings.Join(urls, ","))
		s.waitLog("msg=consuming", fmt.Sprintf("broker=127.0.0.1:%d", c.nodes[order[0]].Port()))
		c.replicas = append(c.replicas, s)
	}
	c.publishSteadily()
	leader := c.queueLeader()
	if leader != c.nodes[1] {
		t.Fatalf("%s leads the queue, not the node that declared it", leader.Name())
	}
	c.fault("the queue's leader, to which one replica is connected", leader.Server)
	if now := c.queueLeader(); now == leader {
		t.Errorf("%s was killed and still leads the queue", now.Name())
	}

	member := c.etcdLeader()
	c.fault("etcd's leader", member.Server)
	if now := c.etcdLeader(); now == member {
		t.Errorf("%s was killed and still leads etcd", now.Endpoint())
	}

	c.allOnline()
	c.replicas[0].wantLines(1, "msg=consuming") // it is still connected to this node
	c.fault("the node that the other replica is connected to", c.nodes[0].Server)
	c.stopPublishing()
	c.publishing.Wait()
	eventually(t, "empty queues, without unacknowledged deliveries", func() error { // the broker counts these every 5 s
		if messages := c.queues("messages"); !maps.Equal(messages, map[string]string{"orders-queue": "0", "orders-queue.dead": "0"}) {
			return fmt.Errorf("there are %v", messages)
		}
		return nil
	})
	c.finish()
	if n := c.depth("orders-queue"); n != 0 { // unacknowledged deliveries are back in the queue
		t.Errorf("%d messages are in orders-queue", n)
	}
	processed := 0
	for _, s := range c.replicas {
		processed += s.log.count("msg=processed")
	}
	if processed != c.published {
		t.Errorf("%d events were processed, want %d", processed, c.published)
	}
	c.cutOff()
}

// fault kills a server, checks that the work continues, and starts the server again.
func (c *cluster) fault(name string, server *stack.Server) {
	c.t.Helper()
	c.healthy()
	killed := time.Now()
	must(c.t, server.Kill())
	took := c.goneOn(killed)
	c.healthy() // with the remaining servers
	both := time.Since(killed)
	if took > 10*time.Second { // 2.5 s on an idle machine, but other tests run at the same time
		c.t.Errorf("%s: the work continued only after %v", name, took)
	}
	back := time.Now()
	must(c.t, server.Start(c.t.Context()))
	c.healthy()
	c.t.Logf("killed %s: an event published after it is done after %v, 20 by each replica after %v; nothing was begun for up to %v while it came back",
		name, took.Round(time.Millisecond), both.Round(time.Millisecond), longestSilence(c.receiver.all(), back, time.Now()).Round(time.Millisecond))
}

// cutOff cuts a node off from the others. The node accepts logins but cannot serve the
// queues: the service connects to the next node, for its dead letters, too.
func (c *cluster) cutOff() {
	c.t.Helper()
	c.allOnline()
	// From now on the node has a wrong cookie for the others, so Erlang cannot reach
	// them.
	if out, err := c.nodes[0].Ctl(c.t.Context(), "eval",
		"[begin erlang:set_cookie(N, wrong), erlang:disconnect_node(N) end || N <- nodes()]."); err != nil || out != "[true,true]" {
		c.t.Fatal(out, err)
	}
	s := c.start("orders", "ENABLE_ETCD=true", "QUEUE_TYPE=quorum")
	s.waitLog("not consuming", fmt.Sprintf("127.0.0.1:%d", c.nodes[0].Port()))
	s.waitLog("msg=consuming", fmt.Sprintf("broker=127.0.0.1:%d", c.nodes[1].Port()))
	c.publishBodies(append(orders("c", 20), "poison")...)
	s.waitLogs(20, "msg=processed")
	s.waitLog("msg=dead-lettered")
	s.stop()
	if letters, left := c.depth("orders-queue.dead"), c.depth("orders-queue"); letters != 1 || left != 0 {
		c.t.Errorf("%d dead letters, want 1; %d messages are left", letters, left)
	}
	c.wantAllDone("orders", c.published+20)
}
