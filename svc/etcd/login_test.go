package etcd

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// slowLogin stands for an etcd whose logins take longer than callTimeout: it fails each
// login at once that has no more time than that.
type slowLogin struct {
	etcdserverpb.UnimplementedAuthServer
}

func (slowLogin) Authenticate(ctx context.Context, _ *etcdserverpb.AuthenticateRequest) (*etcdserverpb.AuthenticateResponse, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= callTimeout {
		return nil, status.Error(codes.Internal, "too little time")
	}
	return &etcdserverpb.AuthenticateResponse{Token: "token"}, nil
}

// A login that takes longer than the first tries allow succeeds in the end.
func TestSlowLogin(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterAuthServer(server, slowLogin{})
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) }) // until Stop
	defer serving.Wait()
	defer server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, Server{
		Endpoints: []string{listener.Addr().String()}, Username: "user", Password: "password",
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
