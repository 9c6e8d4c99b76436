// Package webhook does the work of an event by posting it to a receiver.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
	"golang.org/x/net/http/httpguts"
)

const (
	maxRetryAfter = 30 * time.Second
	// maxAnswer is how many bytes of an answer are read, so that the connection
	// can be reused after any answer of a usual size.
	maxAnswer = 64 << 10
	// pingTimeout is how long an HTTP/2 connection may be silent before it is
	// pinged, and how long the answer may take before the connection is closed.
	pingTimeout = 5 * time.Second
	// maxAge is how long a connection gets new posts. After it the host is looked up
	// again, which may have moved.
	maxAge = time.Minute
)

// Poster posts events to one URL. The receiver recognizes a repeated post by its
// Idempotency-Key, and a late one, from a process that has lost its claim, by an
// X-Fencing-Token smaller than one that it has seen with the same key.
type Poster struct {
	url           string
	authorization string // the header Authorization; "": none but that of a user in url

	mu        sync.Mutex
	transport *http.Transport // of the posts that begin now; not a Client, which would follow redirects
	since     time.Time       // when the transport was made
}

// New returns a Poster. It keeps up to maxIdle idle connections:
// pass how many posts run at once. Close it when no post runs.
func New(url, authorization string, maxIdle int) *Poster {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = maxIdle, maxIdle
	transport.MaxResponseHeaderBytes = maxAnswer
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout}
	return &Poster{url: url, authorization: authorization, transport: transport, since: time.Now()}
}

// Close closes idle connections.
func (p *Poster) Close() { p.current().CloseIdleConnections() }

// current returns the transport for a post. After maxAge it is a new one, with connections of
// its own. Those of the old one are closed when their posts have ended; one of HTTP/2 that had
// posts at this moment, 90 s later.
func (p *Poster) current() *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.since) > maxAge {
		last := p.transport
		p.transport, p.since = last.Clone(), time.Now()
		last.CloseIdleConnections()
	}
	return p.transport
}

// Handle posts the event once. It is a consume.Handler.
func (p *Poster) Handle(ctx context.Context, job consume.Job) error {
	connected := false // after that the receiver may have read the request
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	resp, err := p.post(ctx, job)
	if err != nil {
		return p.unanswered(ctx, job, connected, err)
	}
	defer resp.Body.Close()

	var answer []byte
	if resp.StatusCode != http.StatusSwitchingProtocols { // after that the body is the connection, without end or deadline
		answer, _ = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err = fmt.Errorf("the webhook answered %d %s: %.200q", resp.StatusCode, http.StatusText(resp.StatusCode), answer)
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusInternalServerError:
		return err
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return consume.Unavailable(err, retryAfter(resp.Header))
	case http.StatusBadGateway, http.StatusGatewayTimeout: // of a proxy that may have passed the request on
		return consume.Unavailable(consume.Unknown(err), retryAfter(resp.Header))
	}
	// 409 and 412 are among these: the pipeline checks the claim before it dead-letters
	// anything, so an event with a token that another owner has overtaken is claimed
	// again instead.
	return consume.Permanent(err)
}

// unanswered returns what the lack of an answer means: a failed attempt if the receiver was too
// slow, otherwise an outage. (A post that a stop or a suspended claim has cancelled counts as
// neither: the pipeline asks first why it was cancelled.)
func (p *Poster) unanswered(ctx context.Context, job consume.Job, connected bool, err error) error {
	err = fmt.Errorf("post event %q: %.500w", job.ID, err)
	// Other connections may be dead, too: each would cost an attempt.
	p.current().CloseIdleConnections()
	if connected {
		err = consume.Unknown(err)
		if ctx.Err() != nil {
			return err
		}
	}
	return consume.Unavailable(err, 0)
}

func (p *Poster) post(ctx context.Context, job consume.Job) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(job.Body))
	if err != nil {
		return nil, err
	}
	// Without GetBody net/http cannot send the request again by itself, as it
	// would because of the Idempotency-Key: attempts are counted here.
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", job.Key())
	req.Header.Set("X-Fencing-Token", strconv.FormatInt(job.Token, 10))
	req.Header.Set("X-Attempt", strconv.Itoa(job.Attempt))
	if user := req.URL.User; user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	if p.authorization != "" {
		req.Header.Set("Authorization", p.authorization)
	}
	for _, name := range []string{"traceparent", "tracestate"} { // W3C Trace Context
		if value, _ := job.Headers[name].(string); value != "" && httpguts.ValidHeaderFieldValue(value) {
			req.Header.Set(name, strings.TrimSpace(value))
		}
	}
	return p.current().RoundTrip(req)
}

// retryAfter returns the wait that a Retry-After header asks for, in seconds or
// as a date, up to maxRetryAfter. A date is compared with the receiver's own
// clock, if the answer has a Date.
func retryAfter(h http.Header) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(h.Get("Retry-After"), 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = time.Duration(min(seconds, 3600)) * time.Second
	} else if until, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		now, err := http.ParseTime(h.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		wait = until.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}
