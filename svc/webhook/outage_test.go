package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestOutageIsToldOnce(t *testing.T) {
	var log bytes.Buffer
	var code atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(code.Load())) }))
	defer server.Close()
	p := New(server.URL, 4, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "after" || a.Key == "error" {
				return slog.Attr{}
			}
			return a
		},
	})))
	defer p.Close()
	const (
		unreachable = `level=WARN msg="the webhook is unreachable: events wait, claimed and unacknowledged" id=1 hint="check that the receiver at WEBHOOK_URL is up; if other events are processed, this one may crash it"` + "\n"
		back        = `level=INFO msg="the webhook is reachable again"` + "\n"
	)
	for _, step := range []struct {
		codes []int64
		want  string
	}{
		{[]int64{200, 500, 404}, ""},
		{[]int64{503, 503, 429, 502, 504}, unreachable},
		{[]int64{200, 200}, back},
		{[]int64{503}, unreachable},
		{[]int64{404, 503}, back + unreachable},
		{[]int64{500}, back},
	} {
		for _, c := range step.codes {
			code.Store(c)
			p.Handle(deadline(t), order("1"))
		}
		if diff := cmp.Diff(step.want, log.String()); diff != "" {
			t.Errorf("log of %v (-want +got):\n%s", step.codes, diff)
		}
		log.Reset()
	}
	server.Close()
	p.Handle(deadline(t), order("1"))
	p.Handle(deadline(t), order("1"))
	if diff := cmp.Diff(unreachable, log.String()); diff != "" {
		t.Errorf("log after the server has stopped (-want +got):\n%s", diff)
	}
}

// A post that is cancelled, by a stop or by a suspended claim, is not logged as an
// outage.
func TestCancelledIsNotTold(t *testing.T) {
	tests := map[string]func(context.Context) (net.Conn, error){
		"connecting": func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"waiting for the answer": func(ctx context.Context) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				io.Copy(io.Discard, server)
			}()
			return client, nil
		},
	}
	for name, dial := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				p := New("http://127.0.0.1", 1, slog.New(slog.NewTextHandler(&log, nil)))
				p.useDialer(dial)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- p.Handle(ctx, order("1")) }()
				synctest.Wait()
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				p.Close()
				if log.Len() > 0 {
					t.Error(log.String())
				}
			})
		})
	}
}
