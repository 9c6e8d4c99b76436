package etcd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// newLogged returns a client without a server, and its log.
func newLogged() (*Client, *bytes.Buffer) {
	var lines bytes.Buffer
	return New(nil, slog.New(slog.NewTextHandler(&lines, nil))), &lines
}

// Refusals are logged once for each cause, whatever kinds of call meet it, and so is their end:
// when a call of the kind that was refused last is answered, though not the same call. A call
// that is given up, as those of a session that has ended, hides no later refusal.
func TestRefusals(t *testing.T) {
	c, lines := newLogged()
	refuse := func(kind string, refusal error) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		stopped := errors.New("stopped")
		_, err := call(ctx, c, kind, time.Minute, func(context.Context) (int, error) {
			time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
			return 0, refusal
		})
		if !errors.Is(err, stopped) || !errors.Is(err, refusal) {
			t.Errorf("the call ends with %v", err)
		}
		if err := c.Ping(t.Context(), "key"); !errors.Is(err, refusal) {
			t.Errorf("a ping returns %v", err)
		}
	}
	answer := func(kind string) {
		t.Helper()
		if _, err := call(t.Context(), c, kind, time.Minute, func(context.Context) (int, error) { return 0, nil }); err != nil {
			t.Error(err)
		}
	}
	want := func(refusals, ends int) {
		t.Helper()
		if n := strings.Count(lines.String(), `level=ERROR msg="etcd refuses a call: events wait unacknowledged"`); n != refusals {
			t.Errorf("%d refusals are logged, want %d:\n%s", n, refusals, lines)
		}
		if n := strings.Count(lines.String(), "etcd accepts calls again"); n != ends {
			t.Errorf("the end is logged %d times, want %d:\n%s", n, ends, lines)
		}
	}
	for n := range 2 {
		refuse("grant", rpctypes.ErrNoSpace)
		refuse("txn", rpctypes.ErrNoSpace)
		want(2*n+1, n)
		refuse("txn", rpctypes.ErrPermissionDenied)
		answer("get")
		answer("grant")
		want(2*n+2, n)
		answer("txn")
		answer("txn")
		want(2*n+2, n+1)
	}
	if !strings.Contains(lines.String(), "call=txn") {
		t.Errorf("the kind of call is not named:\n%s", lines)
	}
	c.tries.Wait()
}

// A call that is not answered is sent again beside the first, in four copies at most, which
// have more and more time.
func TestUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, lines := newLogged()
		began := time.Now()
		type try struct{ Sent, Timeout int64 } // in milliseconds
		tries := make(chan try, 7)
		n, err := call(t.Context(), c, "get", 1100*time.Millisecond, func(ctx context.Context) (int, error) {
			deadline, _ := ctx.Deadline()
			tries <- try{time.Since(began).Milliseconds(), time.Until(deadline).Milliseconds()}
			if len(tries) == cap(tries) {
				return 7, nil
			}
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if n != 7 || err != nil {
			t.Errorf("the answer is %d, %v", n, err)
		}
		for _, want := range []try{{0, 5000}, {1100, 5000}, {2200, 5000}, {3300, 5000}, {5500, 5000}, {6600, 10_000}, {7700, 10_000}} {
			if got := <-tries; got != want {
				t.Errorf("sent and timeout of a try: %d, want %d", got, want)
			}
		}
		if n := strings.Count(lines.String(), "unreachable"); n != 1 {
			t.Errorf("the outage is logged %d times:\n%s", n, lines)
		}
		c.tries.Wait()
	})
}

// After a call that succeeds only on its second try, other calls send their second
// try sooner for some time. One that succeeds on its first try changes nothing.
func TestQuickResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newLogged()
		call(t.Context(), c, "get", resendAfter, func(context.Context) (int, error) { return 0, nil })
		for _, want := range []time.Duration{resendAfter, quickResend, resendAfter} {
			var tries atomic.Int32
			began := time.Now()
			_, err := call(t.Context(), c, "get", resendAfter, func(ctx context.Context) (int, error) {
				if tries.Add(1) == 1 { // this try goes to a frozen member
					<-ctx.Done()
				}
				return 0, ctx.Err()
			})
			if took := time.Since(began); err != nil || took != want {
				t.Errorf("answered after %v, want %v (%v)", took, want, err)
			}
			if want == quickResend {
				<-time.After(quickFor)
			}
		}
		c.tries.Wait()
	})
}
