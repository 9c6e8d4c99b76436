package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// watchProxy forwards gRPC calls to an etcd member. It can cut off watches alone: their
// streams stay open and deliver nothing more, as when the member of a watch has lost the
// other members without noticing.
type watchProxy struct {
	addr     string
	upstream *grpc.ClientConn
	requests sync.WaitGroup

	mu  sync.Mutex
	cut chan struct{} // closed when the watches that are open now are cut off
}

func newWatchProxy(t *testing.T, upstream string) *watchProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(upstream, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(asIs{})))
	if err != nil {
		t.Fatal(err)
	}
	p := &watchProxy{addr: listener.Addr().String(), upstream: conn, cut: make(chan struct{})}
	server := grpc.NewServer(grpc.ForceServerCodec(asIs{}), grpc.UnknownServiceHandler(p.forward))
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) }) // until Stop
	t.Cleanup(func() {
		server.Stop()
		conn.Close()
		serving.Wait()
		p.requests.Wait()
	})
	return p
}

// cutOff cuts off the watches that are open. watching returns a channel that is closed then.
func (p *watchProxy) cutOff() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.cut)
	p.cut = make(chan struct{})
}

func (p *watchProxy) watching() (cut <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}

// forward forwards one call of any kind.
func (p *watchProxy) forward(_ any, client grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(client)
	received, _ := metadata.FromIncomingContext(client.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(client.Context(), received))
	defer cancel()
	server, err := p.upstream.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	var cut <-chan struct{} // nil: never
	if method == "/etcdserverpb.Watch/Watch" {
		cut = p.watching()
	}
	// The goroutine may outlive forward, but ends with the call.
	p.requests.Go(func() {
		defer server.CloseSend()
		var message []byte
		for client.RecvMsg(&message) == nil && server.SendMsg(&message) == nil {
		}
	})
	for {
		var message []byte
		if err := server.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-cut:
		default:
			if err := client.SendMsg(&message); err != nil {
				return err
			}
		}
	}
}

// asIs is the codec of messages that are passed on undecoded.
type asIs struct{}

func (asIs) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (asIs) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (asIs) Name() string { return "proto" }
