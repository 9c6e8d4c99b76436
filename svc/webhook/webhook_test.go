package webhook

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/event"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What the pipeline makes of a handler's result.
const (
	isDone   = "done"
	isTry    = "tried again"
	isOutage = "tried again without counting"
	isFinal  = "final"
)

// verdict is what the pipeline makes of err, and how long it waits before the
// next try: the only thing that an error of the handler is for.
func verdict(t *testing.T, err error) (what string, wait time.Duration) {
	t.Helper()
	if err == nil {
		return isDone, 0
	}
	synctest.Test(t, func(t *testing.T) {
		var attempts []int
		begin := time.Now()
		p := &consume.Pipeline{
			Claims: claim.NoDedup{}, Counter: nothing{}, Log: slog.New(slog.DiscardHandler),
			MaxAttempts: 2, Timeout: time.Hour, Semaphore: make(consume.Semaphore, 1),
			Handlers: map[string]consume.Handler{"new_order": func(_ context.Context, job consume.Job) error {
				attempts = append(attempts, job.Attempt)
				if len(attempts) == 1 {
					return err
				}
				wait = time.Since(begin)
				return nil
			}},
		}
		p.Handle(t.Context(), t.Context(), nothing{})
		switch fmt.Sprint(attempts) {
		case "[1]":
			what = isFinal
		case "[1 1]":
			what = isOutage
		case "[1 2]":
			what = isTry
		}
	})
	return what, wait
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if got, _ := verdict(t, err); got != want {
		t.Errorf("%v: %s, want %s", err, got, want)
	}
}

// nothing is a delivery, and a counter, that nobody looks at.
type nothing struct{}

func (nothing) Body() []byte                                      { return []byte(`{"type":"new_order","id":"1"}`) }
func (nothing) Ack()                                              {}
func (nothing) DeadLetter(context.Context, consume.Failure) error { return nil }
func (nothing) Count(string)                                      {}

func newPoster(t *testing.T, url string) *Poster {
	p := New(url, "orders", 4, slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(p.Close)
	return p
}

func order(id string) consume.Job {
	return consume.Job{Event: event.Event{Type: "new_order", ID: id, Body: []byte(`{"type":"new_order","id":"1"}`)}, Token: 7, Attempt: 2}
}

// patient is a context for what must not take long. It decides nothing.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (p *Poster) http() *http.Transport { return p.transport }

// useDialer has the poster connect with dial.
func (p *Poster) useDialer(dial func(ctx context.Context) (net.Conn, error)) {
	p.http().DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
}

func TestRequest(t *testing.T) {
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	job := order("1")
	job.Body = []byte(" {\"type\":\"new_order\",\t\"id\":\"1\",\"note\":\"\\u00e1 注文\"}\r\n")
	if err := newPoster(t, server.URL+"/hook?a=b").Handle(patient(t), job); err != nil {
		t.Fatal(err)
	}
	if string(body) != string(job.Body) || got.ContentLength != int64(len(job.Body)) {
		t.Errorf("body is %q, of %d bytes", body, got.ContentLength)
	}
	if got.Method != http.MethodPost || got.RequestURI != "/hook?a=b" {
		t.Errorf("%s %s", got.Method, got.RequestURI)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Idempotency-Key": "orders/1", "X-Fencing-Token": "7", "X-Attempt": "2",
	} {
		if diff := cmp.Diff([]string{want}, got.Header.Values(name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	var got atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Idempotency-Key"))
	}))
	defer server.Close()
	p := newPoster(t, server.URL)
	for id, want := range map[string]string{
		"123":                                  "123",
		"order-1_A.b~c":                        "order-1_A.b~c",
		`!"#$&'()*+,-./:;<=>?@[\]^_` + "`{|}~": `!"#$&'()*+,-./:;<=>?@[\]^_` + "`{|}~",
		"a b":                                  "a%20b",
		" a ":                                  "%20a%20",
		"%":                                    "%25",
		"%20":                                  "%2520",
		"a/../b":                               "a/../b",
		"\x00":                                 "%00",
		"a\r\nX-Evil: 1":                       "a%0D%0AX-Evil:%201",
		"a\tb":                                 "a%09b",
		"\x7f":                                 "%7F",
		"é":                                    "%C3%A9",
		"注文":                                   "%E6%B3%A8%E6%96%87",
		"😀":                                    "%F0%9F%98%80",
		"\u2028":                               "%E2%80%A8",
		strings.Repeat("x", 512):               strings.Repeat("x", 512),
		strings.Repeat("é", 256):               strings.Repeat("%C3%A9", 256),
	} {
		t.Run(fmt.Sprintf("%.20q", id), func(t *testing.T) {
			if err := p.Handle(patient(t), order(id)); err != nil {
				t.Fatal(err)
			}
			if got.Load() != "orders/"+want {
				t.Errorf("got %q, want %q", got.Load(), "orders/"+want)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for want, codes := range map[string][]int{
		isDone:   {200, 201, 202, 204, 205, 226, 299},
		isTry:    {408, 500},
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
				err := newPoster(t, server.URL).Handle(patient(t), order("1"))
				expect(t, err, want)
				if err != nil && (!strings.Contains(err.Error(), fmt.Sprint(code)) || code != 304 && !strings.Contains(err.Error(), "because")) {
					t.Errorf("%v does not say what was answered", err)
				}
				if posts.Load() != 1 || elsewhere.Load() != 0 {
					t.Errorf("%d posts, and %d elsewhere; want 1, 0", posts.Load(), elsewhere.Load())
				}
			})
		}
	}
}

func TestRetryAfter(t *testing.T) {
	const short = 150 * time.Millisecond // the pause that the pipeline makes anyway, at most
	for header, want := range map[string]time.Duration{
		"":          short,
		"0":         short,
		"1":         time.Second,
		"12":        12 * time.Second,
		"30":        30 * time.Second,
		"31":        30 * time.Second,
		"86400":     30 * time.Second,
		"999999999": 30 * time.Second,
		"-1":        short,
		"-99999":    short,
		"soon":      short,
		"1.5":       short,
		"1s":        short,
		"0x10":      short,
	} {
		for _, code := range []int{429, 502, 503, 504} {
			t.Run(fmt.Sprintf("%d, %q", code, header), func(t *testing.T) {
				p := newPoster(t, "http://127.0.0.1")
				p.useDialer(answering(fmt.Sprintf("HTTP/1.1 %d No\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n", code, header)))
				what, wait := verdict(t, p.Handle(patient(t), order("1")))
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
		from, to    time.Duration // what it waits
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
			what, wait := verdict(t, p.Handle(patient(t), order("1")))
			if what != isOutage || wait < tt.from || wait > tt.to {
				t.Errorf("%s after %v, want %v to %v", what, wait, tt.from, tt.to)
			}
		})
	}
}

// answering is a server that gives every connection's first request the same
// answer, byte for byte, and then closes it.
func answering(answer string) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if readRequest(bufio.NewReader(server)) == nil {
				io.WriteString(server, answer)
			}
		}()
		return client, nil
	}
}

// readRequest reads a request to its end.
func readRequest(from *bufio.Reader) error {
	r, err := http.ReadRequest(from)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

// Nothing has reached the other side: that is an outage, whatever it was.
func TestBeforeTheRequestIsWritten(t *testing.T) {
	fails := func(err error) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) { return nil, err }
	}
	tests := map[string]func(context.Context) (net.Conn, error){
		"no such host":        fails(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "webhook.invalid", IsNotFound: true}}),
		"name server is away": fails(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "i/o timeout", Name: "webhook.invalid", IsTimeout: true}}),
		"unreachable":         fails(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH}),
		"no ports":            fails(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EADDRNOTAVAIL}),
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
	server := httptest.NewServer(nil)
	server.Close()
	expect(t, newPoster(t, server.URL).Handle(patient(t), order("1")), isOutage)
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
			expect(t, newPoster(t, serve(t)).Handle(patient(t), order("1")), isOutage)
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
			for range 2 { // the second on the connection of the first
				if err := p.Handle(patient(t), order("1")); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, p.Handle(patient(t), order("1")), isOutage)
			if posts.Load() != 3 {
				t.Errorf("%d posts, want 3", posts.Load())
			}
			p.Close()
		})
	}
}

// frame is a frame of HTTP/2 on a stream, with the payload that follows.
func frame(kind byte, stream uint32, payload ...byte) []byte {
	head := []byte{0, 0, byte(len(payload)), kind, 0}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// The frames' kinds, and what they say.
const (
	headersFrame, resetFrame, settingsFrame, goAwayFrame = 1, 3, 4, 7
	refusedStream                                        = 7
)

// http2Server answers the headers of each request with the bytes that answer
// returns, and nothing else: no ping, for one. It ends with the connection.
func http2Server(certificate tls.Certificate, answer func(stream uint32) []byte) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			conn := tls.Server(server, &tls.Config{
				Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"},
				SessionTicketsDisabled: true, // nothing reads the ticket before the client has written
			})
			if _, err := io.ReadFull(conn, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
				return
			}
			answers := make(chan []byte, 100) // a pipe has no buffer: reading must not wait for writing
			defer close(answers)
			go func() {
				for a := range answers {
					conn.Write(a)
				}
			}()
			answers <- frame(settingsFrame, 0)
			for head := make([]byte, 9); ; {
				if _, err := io.ReadFull(conn, head); err != nil {
					return
				}
				size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
				if _, err := io.CopyN(io.Discard, conn, size); err != nil {
					return
				}
				if head[3] == headersFrame {
					answers <- answer(binary.BigEndian.Uint32(head[5:]))
				}
			}
		}()
		return client, nil
	}
}

// HTTP/2 has ways of its own to lose a request.
func TestHTTP2(t *testing.T) {
	template := httptest.NewUnstartedServer(nil)
	template.StartTLS()
	template.Close()
	goAway := func(stream uint32) []byte { return frame(goAwayFrame, 0, 0, 0, 0, 0, 0, 0, 0, 0) }
	tests := map[string]struct {
		answer func(stream uint32) []byte
		within time.Duration // of HANDLER_TIMEOUT
	}{
		"refused stream": {func(stream uint32) []byte { return frame(resetFrame, stream, 0, 0, 0, refusedStream) }, 0},
		"reset stream":   {func(stream uint32) []byte { return frame(resetFrame, stream, 0, 0, 0, 2) }, 0},
		"GOAWAY":         {goAway, 0},
		"silence":        {func(uint32) []byte { return nil }, 2 * pingTimeout},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p, conns := newPoster(t, "https://127.0.0.1"), 0
				p.http().TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				dial := http2Server(template.TLS.Certificates[0], tt.answer)
				p.useDialer(func(ctx context.Context) (net.Conn, error) { conns++; return dial(ctx) })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				began := time.Now()
				err = p.Handle(ctx, order("1"))
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %v, want %v", took, tt.within)
				}
				p.Handle(ctx, order("1"))
				if conns != 2 {
					t.Errorf("two posts on %d connections: the first one was lost", conns)
				}
				p.Close()
			})
			expect(t, err, isOutage)
		})
	}
}

// A failure drops the connections that are idle: they may be dead as well.
func TestFailureDropsIdleConnections(t *testing.T) {
	tests := map[string]struct {
		fail func(r *http.Request)
		want string
	}{
		"connection lost": {func(*http.Request) { panic(http.ErrAbortHandler) }, isOutage},
		"too slow":        {func(r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() }, isTry},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var together sync.WaitGroup
			together.Add(2)
			closed := make(chan net.Conn, 10)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Idempotency-Key") == "orders/bad" {
					tt.fail(r)
					return
				}
				together.Done()
				together.Wait()
			}))
			server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed <- conn
				}
			}
			server.Start()
			defer server.Close()
			p := newPoster(t, server.URL)
			var posts sync.WaitGroup
			for range 2 {
				posts.Go(func() {
					if err := p.Handle(patient(t), order("1")); err != nil {
						t.Error(err)
					}
				})
			}
			posts.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			expect(t, p.Handle(ctx, order("bad")), tt.want)
			for range 2 { // that of the failure, and the idle one
				select {
				case <-closed:
				case <-patient(t).Done():
					t.Fatal("a connection is kept")
				}
			}
		})
	}
}

func TestPasswordIsNotTold(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	p := newPoster(t, strings.Replace(server.URL, "http://", "http://user:hunter2@", 1))
	if err := p.Handle(patient(t), order("1")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}

// The connection is lost before an answer: an outage, and only the pipeline
// repeats the post.
func TestConnectionLost(t *testing.T) {
	tests := map[string]string{ // the answer
		"cut before the answer":      "",
		"cut in the status":          "HTTP/1.1 20",
		"cut in the headers":         "HTTP/1.1 200 OK\r\nContent-Le",
		"not HTTP":                   "SSH-2.0-OpenSSH_9.2\r\n",
		"headers that are too large": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
	}
	for name, answer := range tests {
		for _, reused := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", on a reused connection ", reused), func(t *testing.T) {
				url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
					for n := 0; readRequest(from) == nil; n++ {
						seen.posts.Add(1)
						if !reused || n > 0 {
							io.WriteString(to, answer)
							return
						}
						io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				})
				p, posts := newPoster(t, url), int64(1)
				if reused {
					posts = 2
					if err := p.Handle(patient(t), order("1")); err != nil {
						t.Fatal(err)
					}
				}
				err := p.Handle(patient(t), order("1"))
				expect(t, err, isOutage)
				if len(err.Error()) > 1000 || !strings.Contains(err.Error(), `event "1"`) {
					t.Errorf("the error has %d bytes: %.1000v", len(err.Error()), err)
				}
				p.Close()
				if seen.end(); seen.posts.Load() != posts || seen.conns.Load() != 1 {
					t.Errorf("%d posts on %d connections, want %d on 1", seen.posts.Load(), seen.conns.Load(), posts)
				}
			})
		}
	}
}

// seen is what a server has seen.
type seen struct {
	posts, conns atomic.Int64
	end          func() // waits for the server's end
}

// serve starts a TCP server. It closes a connection when handle returns.
func serve(t *testing.T, handle func(from *bufio.Reader, to net.Conn, seen *seen)) (url string, s *seen) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &seen{}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			serving.Go(func() {
				defer conn.Close()
				handle(bufio.NewReader(conn), conn, s)
			})
		}
	})
	s.end = func() {
		listener.Close()
		serving.Wait()
	}
	t.Cleanup(s.end)
	return "http://" + listener.Addr().String(), s
}

func TestNoAnswerInTime(t *testing.T) {
	tests := map[string]string{ // what comes
		"nothing":      "",
		"only a part":  "HTTP/1.1 200 OK\r\nContent-",
		"only interim": "HTTP/1.1 103 Early Hints\r\n\r\n",
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p, end := newPoster(t, "http://127.0.0.1"), make(chan struct{})
				p.useDialer(hanging(answer, end))
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				err = p.Handle(ctx, order("1"))
				if took := time.Since(begin); took != 30*time.Second {
					t.Errorf("it took %v", took)
				}
				close(end)
				p.Close()
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			expect(t, err, isTry)
		})
	}
}

// hanging is a server that sends the beginning of an answer and then hangs.
func hanging(answer string, end <-chan struct{}) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if readRequest(bufio.NewReader(server)) == nil {
				io.WriteString(server, answer)
				<-end
			}
		}()
		return client, nil
	}
}

// Once the status is there the rest of the answer changes nothing, but it does
// not hold the handler up for longer than its time either.
func TestAnswerThatHangs(t *testing.T) {
	tests := map[string]struct{ answer, want string }{
		"done":             {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", isDone},
		"an outage":        {"HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nno", isOutage},
		"a failure":        {"HTTP/1.1 500 No\r\nContent-Length: 10\r\n\r\nno", isTry},
		"final":            {"HTTP/1.1 404 No\r\nContent-Length: 10\r\n\r\nno", isFinal},
		"another protocol": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n", isFinal},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) {
				p, end := newPoster(t, "http://127.0.0.1"), make(chan struct{})
				p.useDialer(hanging(tt.answer, end))
				time.AfterFunc(time.Minute, func() { close(end) })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				err = p.Handle(ctx, order("1"))
				if took := time.Since(begin); took > 30*time.Second {
					t.Errorf("it took %v, its time is 30s", took)
				}
				<-end
				p.Close()
			})
			expect(t, err, tt.want)
		})
	}
}

// A connection that the server has closed while it was idle costs nothing.
func TestServerClosesIdleConnection(t *testing.T) {
	url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
		if readRequest(from) == nil {
			seen.posts.Add(1)
			io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p, closed := newPoster(t, url), make(chan struct{}, 10)
	p.useDialer(func(ctx context.Context) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		return &watched{Conn: conn, closed: closed}, err
	})
	for range 3 {
		if err := p.Handle(patient(t), order("1")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-closed: // net/http has noticed
		case <-patient(t).Done():
			t.Fatal("the end of the connection went unnoticed")
		}
	}
	p.Close()
	if seen.end(); seen.posts.Load() != 3 || seen.conns.Load() != 3 {
		t.Errorf("%d posts on %d connections, want 3 on 3", seen.posts.Load(), seen.conns.Load())
	}
}

type watched struct {
	net.Conn
	closed chan<- struct{}
	once   sync.Once
}

func (c *watched) Close() error {
	c.once.Do(func() { c.closed <- struct{}{} })
	return c.Conn.Close()
}

// breaking is a connection whose writes fail once it has no bytes left.
type breaking struct {
	net.Conn
	left atomic.Int64
}

func (c *breaking) Write(b []byte) (int, error) {
	n := min(int64(len(b)), c.left.Load())
	if n > 0 {
		c.left.Add(-n)
		if n, err := c.Conn.Write(b[:n]); err != nil {
			return n, err
		}
	}
	if n < int64(len(b)) {
		return int(n), syscall.EPIPE
	}
	return int(n), nil
}

// The connection breaks while the request is written.
func TestWriteFails(t *testing.T) {
	tests := map[string]struct {
		reused bool
		body   int   // bytes
		after  int64 // bytes of the request
		want   string
	}{
		"before the first byte":                        {false, 100, 0, isOutage},
		"before the first byte on a reused connection": {true, 100, 0, isOutage},
		"before the first byte of much":                {true, 1 << 20, 0, isOutage},
		"in the headers":                               {false, 100, 10, isOutage},
		"in the body":                                  {false, 1 << 20, 10_000, isOutage},
		"in the body on a reused connection":           {true, 1 << 20, 10_000, isOutage},
		"before the last byte on a reused connection":  {true, 1 << 20, 1 << 20, isOutage},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			url, seen := serve(t, func(from *bufio.Reader, to net.Conn, seen *seen) {
				for readRequest(from) == nil {
					seen.posts.Add(1)
					io.WriteString(to, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			var conns []*breaking
			p := newPoster(t, url)
			p.useDialer(func(ctx context.Context) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
				c := &breaking{Conn: conn}
				c.left.Store(1 << 40)
				if conns = append(conns, c); !tt.reused && len(conns) == 1 {
					c.left.Store(tt.after)
				}
				return c, err
			})
			posts := int64(1)
			if tt.reused {
				posts++
				if err := p.Handle(patient(t), order("1")); err != nil {
					t.Fatal(err)
				}
				conns[0].left.Store(tt.after)
			}
			job := order("1")
			job.Body = bytes.Repeat([]byte("x"), tt.body)
			expect(t, p.Handle(patient(t), job), tt.want)
			if err := p.Handle(patient(t), job); err != nil {
				t.Errorf("the next try: %v", err)
			}
			p.Close()
			if seen.end(); seen.posts.Load() != posts || seen.conns.Load() != 2 {
				t.Errorf("%d whole posts on %d connections, want %d on 2", seen.posts.Load(), seen.conns.Load(), posts)
			}
		})
	}
}

// A redirect is not followed, so it does not matter where it leads.
func TestRedirectToNowhere(t *testing.T) {
	for _, location := range []string{"", "http://[::1", "%zz", ":", "//", "ftp://example.com", strings.Repeat("x", 10_000)} {
		t.Run(fmt.Sprintf("%.20q", location), func(t *testing.T) {
			p := newPoster(t, "http://127.0.0.1")
			p.useDialer(answering("HTTP/1.1 301 Moved\r\nLocation: " + location + "\r\nContent-Length: 0\r\n\r\n"))
			expect(t, p.Handle(patient(t), order("1")), isFinal)
		})
	}
}

// Nobody can fill the memory with an answer, or the log with what it says.
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
			err := p.Handle(patient(t), order("1"))
			expect(t, err, tt.want)
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			select {
			case <-hungUp: // only because nobody reads
			case <-patient(t).Done():
				t.Error("the answer is read for ever")
			}
		})
	}
}

// What the server says in its status goes to the log and into a header.
func TestStatusIsQuoted(t *testing.T) {
	p := newPoster(t, "http://127.0.0.1")
	p.useDialer(answering("HTTP/1.1 400 \xff" + strings.Repeat("x", 10_000) + "\r\nContent-Length: 0\r\n\r\n"))
	err := p.Handle(patient(t), order("1"))
	if err == nil || len(err.Error()) > 2000 || strings.Contains(err.Error(), "\xff") {
		t.Errorf("the error has %d bytes: %.100q", len(err.Error()), err.Error())
	}
}

func TestOutageIsToldOnce(t *testing.T) {
	var log bytes.Buffer
	var code atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(code.Load())) }))
	defer server.Close()
	p := New(server.URL, "orders", 4, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "after" || a.Key == "error" {
				return slog.Attr{}
			}
			return a
		},
	})))
	defer p.Close()
	const (
		away = `level=WARN msg="the webhook is unreachable: events wait, claimed and unacknowledged"` + "\n"
		back = `level=INFO msg="the webhook is reachable again"` + "\n"
	)
	for _, step := range []struct {
		codes []int64
		want  string
	}{
		{[]int64{200, 500, 404}, ""},
		{[]int64{503, 503, 429, 502, 504}, away},
		{[]int64{200, 200}, back},
		{[]int64{503}, away},
		{[]int64{404, 503}, back + away},
		{[]int64{500}, back},
	} {
		for _, c := range step.codes {
			code.Store(c)
			p.Handle(patient(t), order("1"))
		}
		if diff := cmp.Diff(step.want, log.String()); diff != "" {
			t.Errorf("log of %v (-want +got):\n%s", step.codes, diff)
		}
		log.Reset()
	}
	server.Close()
	p.Handle(patient(t), order("1"))
	p.Handle(patient(t), order("1"))
	if diff := cmp.Diff(away, log.String()); diff != "" {
		t.Errorf("log of a server that is gone (-want +got):\n%s", diff)
	}
}

// A stop, or a session that is lost, is no outage of the webhook.
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
				p := New("http://127.0.0.1", "orders", 1, slog.New(slog.NewTextHandler(&log, nil)))
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

// As many connections are kept as posts run at once.
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
	p := New(server.URL, "orders", parallel, slog.New(slog.NewTextHandler(t.Output(), nil)))
	defer p.Close()
	for round := range rounds {
		var posts sync.WaitGroup
		for range parallel {
			posts.Go(func() {
				job := order("1")
				job.Attempt = round
				if err := p.Handle(patient(t), job); err != nil {
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
