package webhook

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// posted returns the request that a poster makes of a job, and its body. The URL names a user, if
// user is not empty.
func posted(t *testing.T, user, authorization string, job consume.Job) (got *http.Request, body string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		got, body = r, string(text)
	}))
	defer server.Close()
	p := New("http://"+user+server.Listener.Addr().String()+"/hook?a=b", authorization, 1)
	defer p.Close()
	if err := p.Handle(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	return got, body
}

func TestRequest(t *testing.T) {
	job := order("a b\r\n注")
	job.Body = []byte(" {\"type\":\"new_order\",\t\"id\":\"1\",\"note\":\"\\u00e1 注文\"}\r\n")
	got, body := posted(t, "user:hunter2@", "", job)
	if body != string(job.Body) || got.ContentLength != int64(len(job.Body)) {
		t.Errorf("body is %q, of %d bytes", body, got.ContentLength)
	}
	if got.Method != http.MethodPost || got.RequestURI != "/hook?a=b" {
		t.Errorf("%s %s", got.Method, got.RequestURI)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Idempotency-Key": "orders/a%20b%0D%0A%E6%B3%A8", "X-Fencing-Token": "7", "X-Attempt": "2",
	} {
		if diff := cmp.Diff([]string{want}, got.Header.Values(name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if user, password, _ := got.BasicAuth(); user != "user" || password != "hunter2" {
		t.Errorf("user %q with the password %q", user, password)
	}
}

// Of the message's headers the trace context is passed on, if a header can have it. A value
// that it cannot have must not look like an outage.
func TestHeaders(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, tt := range map[string]struct {
		authorization string
		sent          map[string]any
		want          http.Header
	}{
		"none":           {"", nil, http.Header{}},
		"authorization":  {"Bearer a-token", map[string]any{"Authorization": "x"}, http.Header{"Authorization": {"Bearer a-token"}}},
		"trace context":  {"", map[string]any{"traceparent": parent, "tracestate": " a=1,b=2 ", "other": "x"}, http.Header{"Traceparent": {parent}, "Tracestate": {"a=1,b=2"}}},
		"not strings":    {"", map[string]any{"traceparent": int32(1), "tracestate": []byte("a=1")}, http.Header{}},
		"more than text": {"", map[string]any{"traceparent": parent + "\r\nX-Evil: 1", "tracestate": "\x00"}, http.Header{}},
	} {
		t.Run(name, func(t *testing.T) {
			job := order("1")
			job.Headers = tt.sent
			got, _ := posted(t, "", tt.authorization, job)
			for _, always := range []string{"Accept-Encoding", "Content-Length", "Content-Type", "Idempotency-Key", "User-Agent", "X-Attempt", "X-Fencing-Token"} {
				got.Header.Del(always)
			}
			if diff := cmp.Diff(tt.want, got.Header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

// The error of a post that fails shows no secret.
func TestSecretsAreNotTold(t *testing.T) {
	p := New("http://user:hunter2@127.0.0.1:1", "Bearer hunter2", 1)
	defer p.Close()
	if err := p.Handle(t.Context(), order("1")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}
