package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// cluster is a world of three brokers and three etcd members.
type cluster struct {
	*world
	nodes   []*stack.Rabbit
	members []*stack.Etcd
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	t.Parallel() // it shares nothing
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	dir := t.TempDir()
	members, err := stack.StartEtcdCluster(ctx, dir, 3, stack.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []string
	for _, m := range members {
		t.Cleanup(func() { m.Close() })
		endpoints = append(endpoints, m.Endpoint())
	}
	first, err := stack.StartRabbit(ctx, filepath.Join(dir, "rabbit0"), stack.RabbitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	nodes := make([]*stack.Rabbit, 3)
	nodes[0] = first
	var joining errgroup.Group
	for i := 1; i < len(nodes); i++ {
		joining.Go(func() (err error) {
			nodes[i], err = stack.StartRabbit(ctx, filepath.Join(dir, fmt.Sprint("rabbit", i)), stack.RabbitOptions{Join: first})
			return err
		})
	}
	err = joining.Wait()
	for _, n := range nodes[1:] {
		if n != nil {
			t.Cleanup(func() { n.Close() })
		}
	}
	if err != nil {
		t.Fatal(err)
	}

	c := &cluster{
		world: &world{env: newEnvOn(t, first.URL(), members[0]), rabbit: first, etcdServer: members[0], copiesOfEachEvent: 2,
			pause: 40 * time.Millisecond}, // six servers on one machine
		nodes: nodes, members: members,
	}
	for _, n := range nodes {
		c.brokers = append(c.brokers, n.URL())
	}
	c.amqpURL, c.etcdAt = strings.Join(c.brokers, ","), strings.Join(endpoints, ",")
	if c.etcd, err = clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.etcd.Close() })
	// By the second node, so that it leads the queue: the services connect to
	// the first.
	c.directAMQP = nodes[1].URL()
	c.channel(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare("events", "topic", true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare("orders-queue", true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
			return err
		}
		return ch.QueueBind("orders-queue", "#", "events", false, nil)
	})
	return c
}

// queueLeader returns the node that leads the queue.
func (c *cluster) queueLeader() *stack.Rabbit {
	c.t.Helper()
	out, err := c.nodes[2].Ctl(c.t.Context(), "list_queues", "name", "leader")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "orders-queue" {
			for _, n := range c.nodes {
				if n.Name() == fields[1] {
					return n
				}
			}
		}
	}
	c.t.Fatalf("nobody leads the queue:\n%s", out)
	return nil
}

// etcdLeader returns the member that leads.
func (c *cluster) etcdLeader() *stack.Etcd {
	c.t.Helper()
	for _, m := range c.members {
		status, err := c.etcd.Status(c.t.Context(), m.Endpoint())
		if err == nil && status.Leader == status.Header.MemberId {
			return m
		}
	}
	c.t.Fatal("no member leads")
	return nil
}

// A node of the broker or a member of etcd goes, the leaders first, and comes
// back: every id is done once, nothing is lost, and no service is restarted.
func TestClusters(t *testing.T) {
	c := newCluster(t)
	c.sink = newSink(t, func(post) int {
		<-time.After(2 * time.Millisecond)
		return http.StatusOK
	})
	for range 2 {
		s := c.start("orders", "ENABLE_ETCD=true", "QUEUE_TYPE=quorum", "WEBHOOK_URL="+c.sink.URL, "CLAIM_TTL=4s", "PREFETCH=100")
		s.waitLog("msg=consuming", "broker="+strings.TrimSuffix(strings.TrimPrefix(c.nodes[0].URL(), "amqp://guest:guest@"), "/"))
		c.replicas = append(c.replicas, s)
	}
	c.publishSteadily()
	ctx := t.Context()
	faults := []struct {
		name  string
		goner func() *stack.Server
	}{
		{"the queue's leader", func() *stack.Server { return c.queueLeader().Server }},
		{"etcd's leader", func() *stack.Server { return c.etcdLeader().Server }},
		{"the node that the services are connected to", func() *stack.Server { return c.nodes[0].Server }},
	}
	for _, f := range faults {
		c.healthy()
		goner := f.goner()
		gone := time.Now()
		if err := goner.Kill(); err != nil {
			t.Fatal(err)
		}
		c.progress(100)
		took := time.Since(gone)
		c.healthy() // with the others
		if err := goner.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("survived: %s; 100 more done %v after it was killed", f.name, took.Round(time.Millisecond))
	}
	c.healthy()
	c.settle()
}
