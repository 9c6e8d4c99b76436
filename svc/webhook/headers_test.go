package webhook

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Of the message's headers the trace context is passed on, if a header can have it. A value
// that it cannot have must not look like an outage.
func TestHeaders(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer server.Close()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tests := map[string]struct {
		authorization string
		sent          map[string]any
		want          http.Header
	}{
		"none":           {"", nil, http.Header{}},
		"authorization":  {"Bearer a-token", map[string]any{"Authorization": "x"}, http.Header{"Authorization": {"Bearer a-token"}}},
		"trace context":  {"", map[string]any{"traceparent": parent, "tracestate": " a=1,b=2 ", "other": "x"}, http.Header{"Traceparent": {parent}, "Tracestate": {"a=1,b=2"}}},
		"not strings":    {"", map[string]any{"traceparent": int32(1), "tracestate": []byte("a=1")}, http.Header{}},
		"more than text": {"", map[string]any{"traceparent": parent + "\r\nX-Evil: 1", "tracestate": "\x00"}, http.Header{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := New(server.URL, tt.authorization, 4, slog.New(slog.NewTextHandler(t.Output(), nil)))
			defer p.Close()
			job := order("1")
			job.Headers = tt.sent
			if err := p.Handle(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			for _, always := range []string{"Accept-Encoding", "Content-Length", "Content-Type", "Idempotency-Key", "User-Agent", "X-Attempt", "X-Fencing-Token"} {
				got.Del(always)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

// The error of a post that fails shows no secret.
func TestSecretsAreNotTold(t *testing.T) {
	p := New("http://user:hunter2@127.0.0.1:1", "Bearer hunter2", 1, slog.New(slog.DiscardHandler))
	defer p.Close()
	if err := p.Handle(t.Context(), order("1")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}
