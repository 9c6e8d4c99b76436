package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// An error before the request is written is an outage, whatever its cause.
func TestBeforeTheRequestIsWritten(t *testing.T) {
	fails := func(err error) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) { return nil, err }
	}
	tests := map[string]func(context.Context) (net.Conn, error){
		"no such host":               fails(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "webhook.invalid", IsNotFound: true}}),
		"name server is unreachable": fails(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "i/o timeout", Name: "webhook.invalid", IsTimeout: true}}),
		"unreachable":                fails(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH}),
		"no ports":                   fails(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EADDRNOTAVAIL}),
		"connect hangs": func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	for name, dial := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p := newPoster(t, "http://127.0.0.1")
				p.useDialer(dial)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				err = p.Handle(ctx, order("1"))
				p.Close()
			})
			expect(t, err, isOutage)
		})
	}
}

func TestConnectionRefused(t *testing.T) {
	expect(t, newPoster(t, "http://127.0.0.1:1").Handle(deadline(t), order("1")), isOutage)
}

func TestHandshakeFails(t *testing.T) {
	tests := map[string]func(t *testing.T) (url string){
		"not TLS": func(t *testing.T) string {
			server := httptest.NewServer(nil)
			t.Cleanup(server.Close)
			return strings.Replace(server.URL, "http://", "https://", 1)
		},
		"a certificate of its own": func(t *testing.T) string {
			server := httptest.NewUnstartedServer(nil)
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			server.StartTLS()
			t.Cleanup(server.Close)
			return server.URL
		},
	}
	for name, serve := range tests {
		t.Run(name, func(t *testing.T) {
			expect(t, newPoster(t, serve(t)).Handle(deadline(t), order("1")), isOutage)
		})
	}
}

func TestTLS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			var posts atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if posts.Add(1) == 3 {
					panic(http.ErrAbortHandler) // cuts the connection, or the stream
				}
				if (r.ProtoMajor == 2) != http2 || r.Header.Get("Idempotency-Key") != "orders/1" {
					t.Errorf("got %s with the key %q", r.Proto, r.Header.Get("Idempotency-Key"))
				}
			}))
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			p := newPoster(t, server.URL)
			p.http().TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
			p.http().TLSClientConfig.RootCAs.AddCert(server.Certificate())
			for range 2 { // the second uses the connection of the first
				if err := p.Handle(deadline(t), order("1")); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, p.Handle(deadline(t), order("1")), isOutage)
			if posts.Load() != 3 {
				t.Errorf("%d posts, want 3", posts.Load())
			}
			p.Close()
		})
	}
}

func TestPasswordIsNotTold(t *testing.T) {
	p := newPoster(t, "http://user:hunter2@127.0.0.1:1")
	if err := p.Handle(deadline(t), order("1")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}

// The poster keeps as many connections as posts run at once.
func TestConnectionsAreUsedAgain(t *testing.T) {
	const parallel, rounds = 300, 5
	var together [rounds]sync.WaitGroup // the posts of a round
	for r := range together {
		together[r].Add(parallel)
	}
	var conns atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		round, _ := strconv.Atoi(r.Header.Get("X-Attempt"))
		together[round].Done()
		together[round].Wait()
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	p := New(server.URL, parallel, slog.New(slog.NewTextHandler(t.Output(), nil)))
	defer p.Close()
	for round := range rounds {
		var posts sync.WaitGroup
		for range parallel {
			posts.Go(func() {
				job := order("1")
				job.Attempt = round
				if err := p.Handle(deadline(t), job); err != nil {
					t.Error(err)
				}
			})
		}
		posts.Wait()
	}
	if conns.Load() != parallel {
		t.Errorf("%d connections for %d posts at once", conns.Load(), parallel)
	}
}
