package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// An overloaded etcd is not taken for one that refuses.
func TestOverloadIsNoRefusal(t *testing.T) {
	for err, want := range map[error]bool{rpctypes.ErrTooManyRequests: false, rpctypes.ErrNoSpace: true, rpctypes.ErrPermissionDenied: true} {
		if isRefusal(fmt.Errorf("write 2: %w", err)) != want {
			t.Errorf("%v is a refusal: %t", err, !want)
		}
	}
}

// A call that is given up while etcd refuses it does not hide later refusals.
func TestRefusedCallGivenUp(t *testing.T) {
	c, lines := newLogged()
	for range 2 {
		ctx, cancel := context.WithCancelCause(t.Context())
		stopped := errors.New("stopped")
		_, err := call(ctx, c, time.Minute, func(context.Context) (int, error) {
			time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
			return 0, rpctypes.ErrNoSpace
		})
		if !errors.Is(err, stopped) || !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("the call ends with %v", err)
		}
	}
	if n := strings.Count(lines.String(), "etcd refuses a call"); n != 2 {
		t.Errorf("%d refusals are logged, want 2:\n%s", n, lines)
	}
	c.tries.Wait()
}

// The end of a refusal is logged once when one of the refused calls succeeds and the others
// are given up, as those of a session that has ended. It is not logged if a call was refused
// in between.
func TestRefusalEndsWithACallGivenUp(t *testing.T) {
	const accepts = "etcd accepts calls again"
	c, lines := newLogged()
	r, get, renew := c.refusals, new(error), new(error)
	r.begin(get, rpctypes.ErrPermissionDenied)
	r.begin(renew, rpctypes.ErrPermissionDenied)
	r.end(get, true)
	r.begin(renew, rpctypes.ErrPermissionDenied)
	r.end(renew, false)
	if strings.Contains(lines.String(), accepts) {
		t.Errorf("the end is logged although the last answer was a refusal:\n%s", lines)
	}
	r.begin(get, rpctypes.ErrPermissionDenied)
	r.begin(renew, rpctypes.ErrPermissionDenied)
	r.end(get, true)
	r.end(renew, false)
	r.end(get, true)
	if n := strings.Count(lines.String(), accepts); n != 1 {
		t.Errorf("the end is logged %d times, want once:\n%s", n, lines)
	}
}

// After a call that succeeds only on its second try, other calls send their second
// try sooner for some time.
func TestQuickResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newLogged()
		for _, want := range []time.Duration{resendAfter, quickResend, resendAfter} {
			var tries atomic.Int32
			began := time.Now()
			_, err := call(t.Context(), c, resendAfter, func(ctx context.Context) (int, error) {
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
