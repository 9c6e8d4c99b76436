package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// callTimeout bounds the first tries of a call to etcd. It doubles every five
	// tries, up to 40 s: a call to an etcd that is slow must succeed in the end.
	callTimeout = 5 * time.Second
	// connectTimeout bounds a try to connect. After a network that dropped packets works
	// again, the next try may begin this much later. A server that takes longer to accept
	// a connection is never reached.
	connectTimeout = 3 * time.Second
	// retryInterval bounds the wait between two tries, so that work goes on within
	// a second of etcd's return.
	retryInterval = 700 * time.Millisecond
	// resendAfter is the time without an answer after which a call is sent again,
	// to the next member: the first may be frozen or cut off, or its leader dead.
	resendAfter = time.Second
	// A call that a later try answered while an earlier one hangs shows that a member
	// is frozen or cut off. The client notices that after quickFor (see Dial). Until
	// then the second try of each call is sent after quickResend: otherwise a third of
	// the calls to three members would take resendAfter longer.
	quickResend = 100 * time.Millisecond
	quickFor    = 15 * time.Second
	// maxTries bounds the tries that are under way at once: a slow etcd must not be
	// overloaded by copies of one call.
	maxTries = 4
)

// final are answers that no later try can change.
var final = []error{rpctypes.ErrLeaseNotFound, rpctypes.ErrCompacted, rpctypes.ErrFutureRev}

// call repeats f, a kind of call to etcd, until it succeeds. It returns an error only if f's
// is one of final or alsoFinal, or when ctx ends. Calls of f overlap when one is not answered
// within resend.
func call[T any](ctx context.Context, c *Client, kind string, resend time.Duration, f func(context.Context) (T, error), alsoFinal ...error) (T, error) {
	type answer struct {
		try   int // from 1
		began time.Time
		v     T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, maxTries)
	next, pause := time.NewTimer(0), NewBackoff()
	var last error
	for sent, underWay := 0, 0; ; {
		select {
		case <-next.C:
			if underWay < maxTries {
				sent++
				underWay++
				try := sent
				c.tries.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, callTimeout<<min((try-1)/5, 3))
					defer cancel()
					began := time.Now()
					v, err := f(ctx)
					answers <- answer{try, began, v, err}
				})
			}
			wait := resend
			if sent == 1 && time.Now().UnixNano() < c.quickUntil.Load() {
				wait = quickResend
			}
			next.Reset(wait)
		case a := <-answers:
			underWay--
			if a.err == nil || slices.ContainsFunc(append(alsoFinal, final...), func(err error) bool { return errors.Is(a.err, err) }) {
				if underWay > sent-a.try { // an earlier try is still unanswered
					c.quickUntil.Store(time.Now().Add(quickFor).UnixNano())
				}
				c.answered(kind, a.began)
				return a.v, a.err
			}
			if last = a.err; ctx.Err() == nil {
				c.failed(kind, a.began, a.err)
			}
			if underWay == 0 {
				next.Reset(pause.NextBackOff())
			}
		case <-ctx.Done():
			var none T
			err := context.Cause(ctx)
			if last != nil {
				err = fmt.Errorf("%w; the last answer of etcd: %w", err, last)
			}
			return none, err
		}
	}
}

// NewBackoff returns the waits between two tries, the longest of which is below a second.
func NewBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: 20 * time.Millisecond, Multiplier: 2, MaxInterval: retryInterval, RandomizationFactor: 0.3,
	}
}
