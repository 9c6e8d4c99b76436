package webhook

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	if err := newPoster(t, server.URL+"/hook?a=b").Handle(deadline(t), job); err != nil {
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
}

func TestAnswer(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for want, codes := range map[string][]int{
		isDone:   {200, 201, 202, 204, 205, 226, 299},
		isFailed: {408, 500},
		isOutage: {429, 502, 503, 504},
		isFinal:  {300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 409, 410, 411, 412, 413, 418, 422, 425, 501, 505, 511, 599, 600, 999},
	} {
		for _, code := range codes {
			t.Run(fmt.Sprint(code), func(t *testing.T) {
				var posts atomic.Int64
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					posts.Add(1)
					w.Header().Set("Location", other.URL)
					w.WriteHeader(code)
					if code != 204 && code != 304 {
						io.WriteString(w, "because")
					}
				}))
				defer server.Close()
				err := newPoster(t, server.URL).Handle(deadline(t), order("1"))
				expect(t, err, want)
				if err != nil && (!strings.Contains(err.Error(), fmt.Sprint(code)) || code != 304 && !strings.Contains(err.Error(), "because")) {
					t.Errorf("%v does not contain the answer", err)
				}
				if posts.Load() != 1 || elsewhere.Load() != 0 {
					t.Errorf("%d posts, and %d elsewhere; want 1, 0", posts.Load(), elsewhere.Load())
				}
			})
		}
	}
}

func TestRetryAfter(t *testing.T) {
	const short = 150 * time.Millisecond // the longest first pause of the pipeline itself
	for header, want := range map[string]time.Duration{
		"":                     short,
		"0":                    short,
		"1":                    time.Second,
		"12":                   12 * time.Second,
		"30":                   30 * time.Second,
		"31":                   30 * time.Second,
		"86400":                30 * time.Second,
		"999999999":            30 * time.Second,
		"99999999999999999999": 30 * time.Second,
		"-1":                   short,
		"-99999":               short,
		"-10000000000":         short,
		"soon":                 short,
		"1.5":                  short,
		"1s":                   short,
		"0x10":                 short,
	} {
		for _, code := range []int{429, 502, 503, 504} {
			t.Run(fmt.Sprintf("%d, %q", code, header), func(t *testing.T) {
				p := newPoster(t, "http://127.0.0.1")
				p.useDialer(answering(fmt.Sprintf("HTTP/1.1 %d No\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n", code, header)))
				what, wait := verdict(t, p.Handle(deadline(t), order("1")))
				if what != isOutage || wait > want || want > short && wait < want {
					t.Errorf("%s after %v, want %v", what, wait, want)
				}
			})
		}
	}
}

func TestRetryAfterDate(t *testing.T) {
	at := func(d time.Duration) string {
		return time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC).Add(d).Format(http.TimeFormat)
	}
	soon := time.Now().UTC().Add(10 * time.Second).Format(http.TimeFormat)
	for name, tt := range map[string]struct {
		date, until string
		from, to    time.Duration // bounds of the wait
	}{
		"in 12 seconds of the receiver's clock": {at(0), at(12 * time.Second), 12 * time.Second, 12 * time.Second},
		"in an hour":                            {at(0), at(time.Hour), 30 * time.Second, 30 * time.Second},
		"past":                                  {at(0), at(-time.Hour), 0, 150 * time.Millisecond},
		"another format":                        {at(0), "Wednesday, 25-Nov-26 08:00:12 GMT", 12 * time.Second, 12 * time.Second},
		"without a clock":                       {"", soon, 5 * time.Second, 10 * time.Second},
		"a clock that is no date":               {"now", soon, 5 * time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPoster(t, "http://127.0.0.1")
			p.useDialer(answering(fmt.Sprintf("HTTP/1.1 503 No\r\nDate: %s\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n", tt.date, tt.until)))
			what, wait := verdict(t, p.Handle(deadline(t), order("1")))
			if what != isOutage || wait < tt.from || wait > tt.to {
				t.Errorf("%s after %v, want %v to %v", what, wait, tt.from, tt.to)
			}
		})
	}
}

// A redirect is not followed, so its location does not matter.
func TestRedirectToNowhere(t *testing.T) {
	for _, location := range []string{"", "http://[::1", "%zz", ":", "//", "ftp://example.com", strings.Repeat("x", 10_000)} {
		t.Run(fmt.Sprintf("%.20q", location), func(t *testing.T) {
			p := newPoster(t, "http://127.0.0.1")
			p.useDialer(answering("HTTP/1.1 301 Moved\r\nLocation: " + location + "\r\nContent-Length: 0\r\n\r\n"))
			expect(t, p.Handle(deadline(t), order("1")), isFinal)
		})
	}
}

// An answer can fill neither the memory nor the log.
func TestHugeAnswer(t *testing.T) {
	tests := map[string]struct {
		code int
		want string
	}{"done": {200, isDone}, "final": {400, isFinal}}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			hungUp := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(hungUp)
				w.WriteHeader(tt.code)
				for {
					if _, err := w.Write(bytes.Repeat([]byte("\x00"), 4096)); err != nil {
						return
					}
				}
			}))
			defer server.Close()
			p := newPoster(t, server.URL)
			err := p.Handle(deadline(t), order("1"))
			expect(t, err, tt.want)
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			select {
			case <-hungUp: // the client closes the connection without reading the whole answer
			case <-deadline(t).Done():
				t.Error("the endless answer is still being read")
			}
		})
	}
}

// The server's status text is quoted and truncated, as it goes into the log and into a
// header.
func TestStatusIsQuoted(t *testing.T) {
	p := newPoster(t, "http://127.0.0.1")
	p.useDialer(answering("HTTP/1.1 400 \xff" + strings.Repeat("x", 10_000) + "\r\nContent-Length: 0\r\n\r\n"))
	err := p.Handle(deadline(t), order("1"))
	if text := fmt.Sprint(err); err == nil || len(text) > 2000 || strings.Contains(text, "\xff") {
		t.Errorf("the error has %d bytes: %.100q", len(text), text)
	}
}
