package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
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

	"github.com/streamdal/gophercon2021/svc/consume"
)

// What each answer means. Redirects are not followed.
func TestAnswer(t *testing.T) {
	for want, codes := range map[string][]int{
		isDone:   {200, 201, 202, 204, 299},
		isFailed: {408, 500},
		isOutage: {429, 502, 503, 504},
		isFinal:  {300, 301, 302, 303, 304, 307, 308, 400, 401, 404, 409, 410, 412, 413, 422, 425, 501, 505, 599, 600, 999},
	} {
		for _, code := range codes {
			bubble(t, fmt.Sprint(code), func(t *testing.T) {
				body := "because"
				if code == 204 || code == 304 {
					body = "" // these have none
				}
				r := newReceiver(step{answer: fmt.Sprintf("HTTP/1.1 %d \xff\r\nLocation: http://127.0.0.1/\r\nRetry-After: 12\r\n\r\n%s", code, body)})
				p := r.poster(t, 1)
				v := judge(t, p.Handle)
				if v.what != want || r.posts.Load() != 1 {
					t.Errorf("%s after %d posts, want %s after 1", v.what, r.posts.Load(), want)
				}
				if text := fmt.Sprint(v.err); v.err != nil && (!strings.Contains(text, fmt.Sprint(code)) ||
					!strings.Contains(text, body) || strings.Contains(text, "\xff")) {
					t.Errorf("the error is %q", text)
				}
				if (v.wait == 12*time.Second) != (want == isOutage) {
					t.Errorf("the next attempt is made after %v", v.wait)
				}
				if v.kept != (code == 502 || code == 504) {
					t.Errorf("the claim is kept: %v", v.kept)
				}
			})
		}
	}
}

func TestRetryAfter(t *testing.T) {
	at := func(d time.Duration) string { // a bubble's clock begins then
		return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(d).Format(http.TimeFormat)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			after, date string
			want        time.Duration
		}{
			{"", "", 0},
			{"12", "", 12 * time.Second},
			{"31", "", 30 * time.Second},
			{"99999999999999999999", "", 30 * time.Second},
			{"-10000000000", "", 0},
			{"1.5", "", 0},
			{"soon", "", 0},
			{at(time.Hour + 12*time.Second), at(time.Hour), 12 * time.Second}, // by the receiver's clock
			{at(2 * time.Hour), at(time.Hour), 30 * time.Second},
			{at(0), at(time.Hour), 0},
			{"Saturday, 01-Jan-00 00:00:12 GMT", at(0), 12 * time.Second},
			{at(10 * time.Second), "", 10 * time.Second}, // by our clock
			{at(10 * time.Second), "now", 10 * time.Second},
		} {
			if got := retryAfter(http.Header{"Retry-After": {tt.after}, "Date": {tt.date}}); got != tt.want {
				t.Errorf("Retry-After: %s, Date: %s: %v, want %v", tt.after, tt.date, got, tt.want)
			}
		}
	})
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
		connects := tt.refuse == nil && !tt.silent
		for _, reused := range []bool{false, true} {
			if reused && !connects {
				continue
			}
			bubble(t, fmt.Sprint(name, ", on a reused connection ", reused), func(t *testing.T) {
				r, posts := newReceiver(), int64(0)
				r.refuse, r.silent = tt.refuse, tt.silent
				p := r.poster(t, 1)
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
				v := judge(t, func(ctx context.Context, _ consume.Job) error {
					err := p.Handle(ctx, job)
					if synctest.Wait(); r.open.Load() > 0 {
						t.Error("the connection is left open")
					}
					return err
				})
				if v.what != tt.want || v.took != tt.took {
					t.Errorf("%s after %v, want %s after %v", v.what, v.took, tt.want, tt.took)
				}
				if r.posts.Load() != posts || r.conns.Load() != 1 {
					t.Errorf("%d posts on %d connections, want %d on 1", r.posts.Load(), r.conns.Load(), posts)
				}
				text := fmt.Sprint(v.err)
				answered := v.err == nil || strings.Contains(text, "answered")
				if len(text) > 1000 || !answered && !strings.Contains(text, `event "1"`) {
					t.Errorf("the error has %d bytes: %.1000q", len(text), text)
				}
				if v.kept == (answered || !connects) {
					t.Errorf("the claim is kept: %v", v.kept)
				}
			})
		}
	}
}

// The poster keeps as many connections as posts run at once. When one fails it closes
// the idle ones, because they may be dead as well.
func TestConnections(t *testing.T) {
	const parallel = 101 // above net/http's own limits
	for name, fails := range map[string]step{"lost": {}, "too slow": {hang: true}} {
		bubble(t, name, func(t *testing.T) {
			r := newReceiver()
			p := r.poster(t, parallel)
			post := func(want int64) {
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
				if posts.Wait(); r.conns.Load() != want {
					t.Errorf("%d connections were opened, want %d", r.conns.Load(), want)
				}
			}
			post(parallel)
			post(parallel)
			r.will(fails)
			judge(t, p.Handle)
			post(2 * parallel)
		})
	}
}

func TestTLS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != http2 {
					t.Errorf("got %s", r.Proto)
				}
			}))
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			for want, roots := range map[string]*x509.CertPool{isOutage: nil, isDone: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs} {
				p := New(server.URL, "", 1)
				defer p.Close()
				p.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
				if v := judge(t, p.Handle); v.what != want {
					t.Errorf("%s (%v), want %s", v.what, v.err, want)
				}
			}
		})
	}
}
