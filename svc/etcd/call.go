package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
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

// pauseAfter returns the time from a try to the next, if it is not answered.
func (c *Client) pauseAfter(try int, resend time.Duration) time.Duration {
	if try == 1 && time.Now().UnixNano() < c.quickUntil.Load() {
		return min(resend, quickResend)
	}
	return resend
}

// call repeats f until it succeeds. It returns an error only if f's is one of permanent, or
// when ctx ends. Calls of f overlap when one is not answered within resend.
func call[T any](ctx context.Context, c *Client, resend time.Duration, f func(context.Context) (T, error), permanent ...error) (T, error) {
	type answer struct {
		try   int // from 1
		v     T
		err   error
		began time.Time
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, maxTries)
	pause := NewBackoff()
	start := time.NewTimer(0)
	defer start.Stop()
	var last error
	for sent, underWay := 0, 0; ; {
		select {
		case <-start.C:
			if underWay < maxTries {
				timeout := callTimeout << min(sent/5, 3)
				sent++
				underWay++
				n := sent
				c.tries.Go(func() {
					try, cancel := context.WithTimeout(ctx, timeout)
					defer cancel()
					began := time.Now()
					v, err := f(try)
					answers <- answer{n, v, err, began}
				})
			}
			start.Reset(c.pauseAfter(sent, resend))
		case a := <-answers:
			underWay--
			if a.err == nil || slices.ContainsFunc(permanent, func(err error) bool { return errors.Is(a.err, err) }) {
				if underWay > sent-a.try { // an earlier try is still unanswered
					c.quickUntil.Store(time.Now().Add(quickFor).UnixNano())
				}
				c.outage.Answered(a.began)
				c.refusals.end(&last, true)
				return a.v, a.err
			}
			switch {
			case ctx.Err() != nil:
			case isRefusal(a.err):
				c.refusals.begin(&last, a.err)
			default:
				c.outage.Failed(a.began, a.err, Hint(a.err))
			}
			last = a.err
			if underWay == 0 {
				start.Reset(pause.NextBackOff())
			}
		case <-ctx.Done():
			c.refusals.end(&last, false)
			var none T
			if last != nil {
				return none, fmt.Errorf("%w; the last answer of etcd: %w", context.Cause(ctx), last)
			}
			return none, context.Cause(ctx)
		}
	}
}

// NewBackoff returns the waits between two tries, the longest of which is below a second.
func NewBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: 20 * time.Millisecond, Multiplier: 2, MaxInterval: retryInterval, RandomizationFactor: 0.3,
	}
}
