package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

func TestRequest(t *testing.T) {
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	job := order("a b\r\n注")
	job.Body = []byte(" {\"type\":\"new_order\",\t\"id\":\"1\",\"note\":\"\\u00e1 注文\"}\r\n")
	p := New(strings.Replace(server.URL, "//", "//user:hunter2@", 1)+"/hook?a=b", "", 1)
	defer p.Close()
	if err := p.Handle(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if string(body) != string(job.Body) || got.ContentLength != int64(len(job.Body)) {
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
	server.Close()
	if err := p.Handle(t.Context(), job); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("without a server the error is %v", err)
	}
}

// What each answer means. Redirects are not followed.
func TestAnswer(t *testing.T) {
	for want, codes := range map[string][]int{
		isDone:   {200, 201, 202, 204, 299},
		isFailed: {408, 500},
		isOutage: {429, 502, 503, 504},
		isFinal:  {300, 301, 302, 303, 304, 307, 308, 400, 401, 404, 409, 410, 412, 413, 422, 425, 501, 505, 599, 600, 999},
	} {
		for _, code := range codes {
			t.Run(fmt.Sprint(code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					body := "because"
					if code == 204 || code == 304 {
						body = "" // these have none
					}
					r := &receiver{steps: []step{{answer: fmt.Sprintf("HTTP/1.1 %d \xff\r\nLocation: http://127.0.0.1/\r\n\r\n%s", code, body)}}}
					p, stop := r.poster(1)
					what, _, _, err := verdict(t, p.Handle)
					if what != want || r.posts != 1 {
						t.Errorf("%s after %d posts, want %s after 1", what, r.posts, want)
					}
					if text := fmt.Sprint(err); err != nil && (!strings.Contains(text, fmt.Sprint(code)) ||
						!strings.Contains(text, body) || strings.Contains(text, "\xff")) {
						t.Errorf("the error is %q", text)
					}
					if kept := unknown(t, err); kept != (code == 502 || code == 504) {
						t.Errorf("after %d the claim is kept: %v", code, kept)
					}
					stop()
				})
			})
		}
	}
}

func TestRetryAfter(t *testing.T) {
	at := func(d time.Duration) string { // a bubble's clock begins then
		return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(d).Format(http.TimeFormat)
	}
	const short = 150 * time.Millisecond // the longest first pause of the pipeline itself
	type headers struct{ after, date string }
	for h, want := range map[headers]time.Duration{
		{}:                              short,
		{after: "12"}:                   12 * time.Second,
		{after: "31"}:                   30 * time.Second,
		{after: "99999999999999999999"}: 30 * time.Second,
		{after: "-10000000000"}:         short,
		{after: "1.5"}:                  short,
		{after: "soon"}:                 short,
		{at(time.Hour + 12*time.Second), at(time.Hour)}: 12 * time.Second, // by the receiver's clock
		{at(2 * time.Hour), at(time.Hour)}:              30 * time.Second,
		{at(0), at(time.Hour)}:                          short,
		{"Saturday, 01-Jan-00 00:00:12 GMT", at(0)}:     12 * time.Second,
		{after: at(10 * time.Second)}:                   10 * time.Second, // by our clock
		{at(10 * time.Second), "now"}:                   10 * time.Second,
	} {
		for _, code := range []int{429, 502, 503, 504} {
			t.Run(fmt.Sprint(code, h), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := &receiver{steps: []step{{answer: fmt.Sprintf("HTTP/1.1 %d No\r\nRetry-After: %s\r\nDate: %s\r\n\r\n", code, h.after, h.date)}}}
					p, stop := r.poster(1)
					what, _, wait, _ := verdict(t, p.Handle)
					if what != isOutage || wait > want || want > short && wait < want {
						t.Errorf("%s after %v, want %v", what, wait, want)
					}
					stop()
				})
			})
		}
	}
}

// Without an answer it is an outage, unless the receiver is only too slow. A connection
// that is used again makes no difference: net/http never repeats a post by itself.
func TestNoAnswer(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	tests := map[string]struct {
		step
		refuse error
		silent bool
		want   string
		took   time.Duration
	}{
		"no such host":            {refuse: &net.DNSError{Err: "no such host", IsNotFound: true}, want: isOutage},
		"connection refused":      {refuse: syscall.ECONNREFUSED, want: isOutage},
		"connecting hangs":        {silent: true, want: isOutage, took: 30 * time.Second},
		"cut before the answer":   {want: isOutage},
		"cut in the headers":      {step: step{answer: "HTTP/1.1 200 OK\r\nContent-Le"}, want: isOutage},
		"cut in the body":         {step: step{early: true}, want: isOutage}, // of the request
		"not HTTP":                {step: step{answer: "SSH-2.0-OpenSSH_9.2\r\n"}, want: isOutage},
		"too large headers":       {step: step{answer: "HTTP/1.1 200 OK\r\nX: " + large + "\r\n\r\n"}, want: isOutage},
		"nothing":                 {step: step{hang: true}, want: isFailed, took: 30 * time.Second},
		"only a part":             {step: step{answer: "HTTP/1.1 200 OK\r\nContent-", hang: true}, want: isFailed, took: 30 * time.Second},
		"only interim":            {step: step{answer: "HTTP/1.1 103 Early Hints\r\n\r\n", hang: true}, want: isFailed, took: 30 * time.Second},
		"done, then nothing":      {step: step{answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", hang: true}, want: isDone, took: 30 * time.Second},
		"an outage, then nothing": {step: step{answer: "HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nno", hang: true}, want: isOutage, took: 30 * time.Second},
		"an endless answer":       {step: step{answer: "HTTP/1.1 404 No\r\n\r\n" + large, hang: true}, want: isFinal},
		"another protocol":        {step: step{answer: "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n", hang: true}, want: isFinal},
	}
	for name, tt := range tests {
		for _, reused := range []bool{false, true} {
			connects := tt.refuse == nil && !tt.silent
			if reused && !connects {
				continue
			}
			t.Run(fmt.Sprint(name, ", on a reused connection ", reused), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, posts := &receiver{refuse: tt.refuse, silent: tt.silent}, 0
					p, stop := r.poster(1)
					job := order("1")
					job.Body = bytes.Repeat([]byte("x"), 1<<20)
					if reused {
						r.will(ok)
						p.Handle(t.Context(), job)
						posts++
					}
					if connects {
						posts++
					}
					r.will(tt.step)
					what, took, _, err := verdict(t, func(ctx context.Context, _ consume.Job) error {
						err := p.Handle(ctx, job)
						if synctest.Wait(); r.open > 0 {
							t.Error("the connection is left open")
						}
						return err
					})
					if what != tt.want || took != tt.took {
						t.Errorf("%s after %v, want %s after %v", what, took, tt.want, tt.took)
					}
					if r.posts != posts || r.conns != 1 {
						t.Errorf("%d posts on %d connections, want %d on 1", r.posts, r.conns, posts)
					}
					text := fmt.Sprint(err)
					answered := err == nil || strings.Contains(text, "answered")
					if len(text) > 1000 || !answered && !strings.Contains(text, `event "1"`) {
						t.Errorf("the error has %d bytes: %.1000q", len(text), text)
					}
					if kept := unknown(t, err); kept == (answered || !connects) {
						t.Errorf("the claim is kept: %v", kept)
					}
					stop()
				})
			})
		}
	}
}

// The poster keeps as many connections as posts run at once. When one fails it closes
// the idle ones, because they may be dead as well.
func TestConnections(t *testing.T) {
	const parallel = 101 // above net/http's own limits
	for name, fails := range map[string]step{"lost": {}, "too slow": {hang: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{}
				p, stop := r.poster(parallel)
				post := func(want int) {
					t.Helper()
					var posts sync.WaitGroup
					r.will(slices.Repeat([]step{{answer: ok.answer, keep: true, delay: time.Second}}, parallel)...)
					for range parallel {
						posts.Go(func() {
							if err := p.Handle(t.Context(), order("1")); err != nil {
								t.Error(err)
							}
						})
					}
					if posts.Wait(); r.conns != want {
						t.Errorf("%d connections were opened, want %d", r.conns, want)
					}
				}
				post(parallel)
				post(parallel)
				r.will(fails)
				verdict(t, p.Handle)
				post(2 * parallel)
				stop()
			})
		})
	}
}

func TestTLS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Idempotency-Key") == "orders/bad" {
					panic(http.ErrAbortHandler) // cuts the connection, or the stream
				}
				if (r.ProtoMajor == 2) != http2 || r.Header.Get("Authorization") != "" {
					t.Errorf("got %s with the authorization %q", r.Proto, r.Header.Get("Authorization"))
				}
			}))
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			expect := func(p *Poster, id, want string) {
				t.Helper()
				defer p.Close()
				if what, _, _, err := verdict(t, func(ctx context.Context, _ consume.Job) error { return p.Handle(ctx, order(id)) }); what != want {
					t.Errorf("%s: %s (%v), want %s", id, what, err, want)
				}
			}
			expect(New(server.URL, "", 1), "untrusted", isOutage)
			p := New(server.URL, "", 1)
			p.transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
			p.transport.TLSClientConfig.RootCAs.AddCert(server.Certificate())
			expect(p, "1", isDone)
			expect(p, "bad", isOutage)
		})
	}
}
