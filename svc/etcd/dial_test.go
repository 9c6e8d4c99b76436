package etcd

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// slowListener accepts each connection after a delay.
type slowListener struct {
	net.Listener
	delay time.Duration
}

func (l slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	<-time.After(l.delay)
	return conn, err
}

// startFake returns the port of a fakeEtcd that accepts connections after a delay.
func startFake(t *testing.T, delay time.Duration) (port string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, fakeEtcd{})
	etcdserverpb.RegisterAuthServer(server, fakeEtcd{})
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(slowListener{listener, delay}) }) // until Stop
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return port
}

var proxied atomic.Int64 // requests to HTTPS_PROXY

// TestMain sets HTTPS_PROXY for all tests, because a process reads it only once.
func TestMain(m *testing.M) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { proxied.Add(1) }))
	os.Setenv("HTTPS_PROXY", proxy.URL)
	os.Setenv("NO_PROXY", "")
	os.Exit(m.Run())
}

// An etcd is reached although its logins take longer than the first tries allow, or although it
// takes two seconds to accept a connection; and directly, whatever HTTPS_PROXY says: gRPC would
// use the proxy for any name but "localhost", and takes these capitals for another one.
func TestDial(t *testing.T) {
	for name, tt := range map[string]struct {
		host, user string
		delay      time.Duration
	}{
		"slow login":   {"127.0.0.1", "user", 0},
		"slow accept":  {"127.0.0.1", "", 2 * time.Second},
		"not by proxy": {"LOCALHOST", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			server := Server{Endpoints: []string{tt.host + ":" + startFake(t, tt.delay)}, Username: tt.user, Password: tt.user}
			c, err := Dial(ctx, server, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Get(ctx, "key"); err != nil || proxied.Load() > 0 {
				t.Errorf("%v; %d requests to HTTPS_PROXY", err, proxied.Load())
			}
		})
	}
}
