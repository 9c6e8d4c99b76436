package etcd

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// An etcd that takes two seconds to accept a connection is reached all the same.
func TestSlowConnection(t *testing.T) {
	t.Parallel()
	server, err := stack.StartEtcd(t.Context(), filepath.Join(t.TempDir(), "etcd"), stack.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(proxies, "slow", "localhost:0", server.Endpoint())
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer proxy.Stop()
	slow := `{"name":"slow","type":"latency","stream":"downstream","attributes":{"latency":2000}}`
	if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(slow)); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), Server{Endpoints: []string{proxy.Listen}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Get(ctx, "key"); err != nil {
		t.Error(err)
	}
}
