package etcd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeEtcd answers reads, and logins that have more time than the first tries allow: it
// stands for an etcd whose logins take longer than callTimeout.
type fakeEtcd struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedAuthServer
}

func (fakeEtcd) Range(context.Context, *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	return &etcdserverpb.RangeResponse{}, nil
}

func (fakeEtcd) Authenticate(ctx context.Context, _ *etcdserverpb.AuthenticateRequest) (*etcdserverpb.AuthenticateResponse, error) {
	if deadline, _ := ctx.Deadline(); time.Until(deadline) <= callTimeout {
		return nil, status.Error(codes.Internal, "too little time")
	}
	return &etcdserverpb.AuthenticateResponse{Token: "token"}, nil
}

// startFake returns the port of a fakeEtcd.
func startFake(t *testing.T) (port string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, fakeEtcd{})
	etcdserverpb.RegisterAuthServer(server, fakeEtcd{})
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) }) // until Stop
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return port
}

// mustReach reads a key from an etcd.
func mustReach(t *testing.T, endpoint, user string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, Server{Endpoints: []string{endpoint}, Username: user, Password: user}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(ctx, "key"); err != nil {
		t.Error(err)
	}
}

// A login that takes longer than the first tries allow succeeds in the end.
func TestSlowLogin(t *testing.T) {
	t.Parallel()
	mustReach(t, "127.0.0.1:"+startFake(t), "user")
}

// An etcd that takes two seconds to accept a connection is reached all the same.
func TestSlowConnection(t *testing.T) {
	t.Parallel()
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(proxies, "slow", "127.0.0.1:0", "127.0.0.1:"+startFake(t))
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer proxy.Stop()
	slow := `{"name":"slow","type":"latency","stream":"downstream","attributes":{"latency":2000}}`
	if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(slow)); err != nil {
		t.Fatal(err)
	}
	mustReach(t, proxy.Listen, "")
}

var proxied atomic.Int64 // connections to HTTPS_PROXY

// TestMain sets HTTPS_PROXY for all tests, because a process reads it only once. The proxy
// closes each connection.
func TestMain(m *testing.M) {
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := proxy.Accept()
			if err != nil {
				return
			}
			proxied.Add(1)
			conn.Close()
		}
	}()
	os.Setenv("HTTPS_PROXY", "http://"+proxy.Addr().String())
	os.Setenv("NO_PROXY", "")
	os.Exit(m.Run())
}

// An etcd is reached directly, whatever HTTPS_PROXY says. gRPC would use the proxy for any
// name but "localhost", and takes these capitals for another one.
func TestProxyIsNotUsed(t *testing.T) {
	mustReach(t, "LOCALHOST:"+startFake(t), "")
	if n := proxied.Load(); n > 0 {
		t.Errorf("%d connections to HTTPS_PROXY", n)
	}
}
