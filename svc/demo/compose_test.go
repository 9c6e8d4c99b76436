package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/streamdal/gophercon2021/svc/harness"
	"github.com/streamdal/gophercon2021/svc/stack"
)

// With -compose the demo uses servers that are already running, reports to their statsd,
// and kills none of them.
func TestCompose(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dir := t.TempDir()
	rabbit, err := stack.StartRabbit(ctx, filepath.Join(dir, "rabbitmq"), stack.RabbitOptions{})
	must(t, err)
	defer rabbit.Close()
	etcd, err := stack.StartEtcd(ctx, filepath.Join(dir, "etcd"), stack.EtcdOptions{})
	must(t, err)
	defer etcd.Close()
	statsd, err := stack.StartStatsd()
	must(t, err)
	defer statsd.Close()
	opts := options{compose: true, composeServers: harness.Addresses{AMQP: rabbit.URL(), Etcd: etcd.Endpoint(), Statsd: statsd.Addr()}}

	plays := func(scene, wantStatus int, wants ...string) {
		t.Helper()
		var out bytes.Buffer
		opts.scene = scene
		if status := runInTest(t, opts, &out, false); status != wantStatus {
			t.Errorf("scene %d: the exit status is %d, want %d:\n%s", scene, status, wantStatus, &out)
		}
		for _, want := range wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("scene %d: no %q in:\n%s", scene, want, &out)
			}
		}
	}
	for range 2 { // in the second run etcd still has the ids of the first
		plays(3, allPassed, "Graphite: http://localhost:80", "Scene 3 passed")
	}
	if ok, skipped := statsd.Count("orders_new_order_ok"), statsd.Count("orders_new_order_skipped"); ok != 22 || skipped != 38 {
		t.Errorf("statsd of docker-compose has %d processed and %d skipped, want 22 and 38", ok, skipped)
	}
	plays(len(scenes), allPassed, "Left out")

	// The demo does not begin while a queue holds messages that are not its own.
	b := harness.Publisher{URL: rabbit.URL()}
	defer b.Close()
	must(t, b.Publish(ctx, harness.Message(event("not-ours"))))
	plays(1, cannotBegin)
	if n, _, err := b.Inspect("orders-queue"); n != 1 || err != nil {
		t.Errorf("%d messages are left (%v), want 1", n, err)
	}
	must(t, rabbit.Close())
	plays(1, cannotBegin)
}
