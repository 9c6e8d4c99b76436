// Package webhook does the work of an event by posting it to somebody else.
package webhook

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/outage"
)

const (
	longestRetryAfter = 30 * time.Second
	// mostAnswer is how much of an answer is read: enough to use the
	// connection again after what a sane server says.
	mostAnswer = 64 << 10
	// mostQuoted is how much of it an error quotes.
	mostQuoted = 200
)

// Poster posts events to one URL. The receiver can tell a repeated post by its
// Idempotency-Key, and one that comes too late from a process that has lost
// its claim by its X-Fencing-Token: smaller than one seen before.
type Poster struct {
	url, role string
	transport *http.Transport // not a Client: a redirect is an answer like any other
	away      *outage.Log
}

// New returns a Poster for the events of role; at most parallel posts run at
// once. Close it when no post runs.
func New(url, role string, parallel int, log *slog.Logger) *Poster {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = counted(transport.DialContext)
	transport.MaxIdleConnsPerHost = parallel
	transport.MaxResponseHeaderBytes = mostAnswer
	return &Poster{
		url: url, role: role, transport: transport,
		away: outage.New(log, "the webhook", "events wait, claimed and unacknowledged"),
	}
}

// Close closes idle connections.
func (p *Poster) Close() { p.transport.CloseIdleConnections() }

// Handle posts the event once. It is a consume.Handler.
//
// 2xx is done. 408, 500 and a timeout after the request was written may be
// tried again. 429, 502, 503, 504 and every failure before the request was
// written are an outage. Anything else is final.
func (p *Poster) Handle(ctx context.Context, job consume.Job) error {
	var conn *countedConn
	var before int64
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			conn = unwrap(got.Conn)
			before = conn.written.Load()
		},
	})
	began := time.Now()
	resp, err := p.post(ctx, job)
	if err != nil {
		if conn != nil && conn.written.Load() > before { // at least in part: the other side may have acted
			return consume.Unknown(fmt.Errorf("post to the webhook, outcome unknown: %w", err))
		}
		if context.Cause(ctx) == nil || ctx.Err() == context.DeadlineExceeded {
			p.away.Failed(began, err, "")
		}
		return consume.Outage(fmt.Errorf("reach the webhook: %w", err), 0)
	}
	defer resp.Body.Close()
	var answer []byte
	if resp.StatusCode != http.StatusSwitchingProtocols { // after that the body is the connection, without end or deadline
		answer, _ = io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	}
	err = fmt.Errorf("the webhook answered %d %s: %s", resp.StatusCode, http.StatusText(resp.StatusCode), quote(answer))
	switch code := resp.StatusCode; code {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		p.away.Failed(began, err, "")
		return consume.Outage(err, retryAfter(resp.Header))
	case http.StatusRequestTimeout, http.StatusInternalServerError:
		p.away.Answered(began)
		return err
	default:
		p.away.Answered(began)
		if code/100 == 2 {
			return nil
		}
		return consume.Final(err)
	}
}

func (p *Poster) post(ctx context.Context, job consume.Job) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(job.Body))
	if err != nil {
		return nil, err
	}
	// Without GetBody net/http cannot send the request again by itself, which
	// it would for an Idempotency-Key: tries are counted here.
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", p.role+"/"+escape(job.ID))
	req.Header.Set("X-Fencing-Token", strconv.FormatInt(job.Token, 10))
	req.Header.Set("X-Attempt", strconv.Itoa(job.Attempt))
	if user := req.URL.User; user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	return p.transport.RoundTrip(req)
}

// escape percent-encodes what may not stand in a header, and % itself.
func escape(id string) string {
	var b strings.Builder
	for _, c := range []byte(id) {
		if c > ' ' && c < 0x7f && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// retryAfter returns the seconds of a Retry-After header, bounded.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 3600))*time.Second, longestRetryAfter)
}

func quote(answer []byte) string {
	if len(answer) > mostQuoted {
		answer = answer[:mostQuoted]
	}
	return strconv.Quote(string(answer))
}
