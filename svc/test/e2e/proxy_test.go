package e2e

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// proxy is a breakable network between the services and a server.
type proxy struct {
	t testing.TB
	*toxiproxy.Proxy
}

// newProxy returns a proxy to upstream, a host:port. It keeps its own port while it is
// cut.
func newProxy(t testing.TB, upstream string) *proxy {
	t.Helper()
	port, err := stack.ReservePort()
	must(t, err)
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{t, toxiproxy.NewProxy(server, upstream, port.Addr(), upstream)}
	must(t, p.reopen())
	t.Cleanup(func() {
		p.Stop()
		port.Close()
	})
	return p
}

// proxyBroker makes the services that e starts reach the broker through a proxy.
func (e *env) proxyBroker() *proxy {
	e.t.Helper()
	broker, err := url.Parse(e.amqpURL)
	e.must(err)
	p := newProxy(e.t, broker.Host)
	e.amqpURL = strings.Replace(e.amqpURL, broker.Host, p.Listen, 1)
	return p
}

// cut closes all connections and refuses new ones until reconnect.
func (p *proxy) cut()       { p.Stop() }
func (p *proxy) reconnect() { p.t.Helper(); must(p.t, p.reopen()) }

// reopen listens again on the port that ReservePort or cut has closed.
func (p *proxy) reopen() error { return stack.Relisten(p.Start) }

// blackhole drops all packets in both directions until restore.
func (p *proxy) blackhole() {
	for _, stream := range []string{"upstream", "downstream"} {
		p.toxic(fmt.Sprintf(`{"name":"blackhole-%s","type":"timeout","stream":%q,"attributes":{"timeout":0}}`, stream, stream))
	}
}

// delay delays every answer by ms milliseconds until restore.
func (p *proxy) delay(ms int) {
	p.toxic(fmt.Sprintf(`{"name":"delay","type":"latency","stream":"downstream","attributes":{"latency":%d}}`, ms))
}

func (p *proxy) toxic(json string) {
	p.t.Helper()
	_, err := p.Toxics.AddToxicJson(strings.NewReader(json))
	must(p.t, err)
}

func (p *proxy) restore() { p.Toxics.ResetToxics(context.Background()) }
