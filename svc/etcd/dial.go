package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Server holds the endpoints of etcd and the credentials for it.
type Server struct {
	Endpoints          []string // host:port
	Username, Password string   // empty: no authentication
	TLS                *tls.Config
}

// noResend keeps logins, which are expensive for etcd, from overlapping.
const noResend = time.Hour

// Dial returns a client of etcd. With a user name the client asks etcd for a
// token first, and Dial waits for that until ctx ends or etcd refuses the
// password; otherwise it asks nothing.
func Dial(ctx context.Context, server Server, log *slog.Logger) (*Client, error) {
	cfg := clientv3.Config{
		Endpoints: server.Endpoints, TLS: server.TLS,
		Username: server.Username, Password: server.Password,
		// The timeout holds for unacknowledged data, too: it bounds how long a
		// network that drops packets goes unnoticed. A slow etcd must be able to
		// answer within it.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(), // its errors are returned
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryInterval},
			MinConnectTimeout: connectTimeout,
		}), grpc.WithNoProxy(), grpc.WithChainUnaryInterceptor(withReason(server.TLS != nil))},
	}
	c := New(nil, log)
	var err error
	if server.Username == "" {
		c.Raw, err = clientv3.New(cfg)
		return c, err
	}
	// The token is fetched under the context that the client is to live in.
	alive, end := context.WithCancel(context.Background())
	defer context.AfterFunc(ctx, end)()
	cfg.Context = alive
	defer c.tries.Wait()
	c.Raw, err = call(ctx, c, "login", noResend, func(try context.Context) (*clientv3.Client, error) {
		deadline, _ := try.Deadline()
		cfg.DialTimeout = time.Until(deadline) // of the login
		return clientv3.New(cfg)
	}, rpctypes.ErrAuthFailed)
	if errors.Is(err, rpctypes.ErrAuthFailed) {
		err = fmt.Errorf("log in to etcd as %q: %w", server.Username, err)
	}
	return c, err
}

// withReason keeps the text that says why a call could not be sent before its deadline,
// such as a bad certificate: the client drops the text of DeadlineExceeded.
func withReason(secure bool) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		s := status.Convert(err)
		if s.Code() != codes.DeadlineExceeded || !strings.Contains(s.Message(), "latest balancer error: ") {
			return err
		}
		reason := s.Message()
		if secure && brokenOff.MatchString(reason) {
			reason += " (tls: broken off)" // see Hint
		}
		return status.Error(codes.FailedPrecondition, reason)
	}
}

// brokenOff matches the errors of a handshake that the server broke off. In TLS 1.3
// a server may refuse the client's certificate when the client is already writing.
var brokenOff = regexp.MustCompile(`broken pipe|connection reset|EOF`)
