package claim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/streamdal/gophercon2021/svc/outage"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// callTimeout bounds the first try of a call to etcd, longestCall the
	// later ones: an etcd that is slow, not away, must get through in the end.
	// A dead connection is noticed by gRPC's own pings long before.
	callTimeout = 5 * time.Second
	longestCall = 40 * time.Second
	// retryMost keeps the promise that work goes on within 2 s of etcd's
	// return.
	retryMost = 700 * time.Millisecond
)

// outages is told how calls go: an *outage.Log, or leaseOutages.
type outages interface {
	Failed(began time.Time, err error, advice string)
	Answered(began time.Time)
}

// leaseOutages is for calls about leases alone, which every user may make: an
// answer to one does not mean that the user may read and write keys.
type leaseOutages struct{ *outage.Log }

func (o leaseOutages) Answered(began time.Time) { o.Reached(began) }

// retry paces calls to etcd that are sent again until they are answered.
type retry struct {
	away    outages
	tries   int
	began   time.Time // the last of them
	backoff backoff.ExponentialBackOff
}

func newRetry(away outages) *retry {
	return &retry{away: away, backoff: backoff.ExponentialBackOff{
		InitialInterval: 20 * time.Millisecond, Multiplier: 2, MaxInterval: retryMost, RandomizationFactor: 0.3,
	}}
}

// once calls f with the deadline of this try.
func (r *retry) once(life context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(life, min(callTimeout<<min(r.tries, 8), longestCall))
	defer cancel()
	r.tries++
	r.began = time.Now()
	err := f(ctx)
	if err == nil {
		r.away.Answered(r.began)
	}
	return err
}

// pause logs the failure of a try and waits for the next. It fails when life
// ends.
func (r *retry) pause(life context.Context, err error) error {
	if life.Err() == nil {
		r.away.Failed(r.began, err, advice(err))
	}
	select {
	case <-time.After(r.backoff.NextBackOff()):
		return nil
	case <-life.Done():
		return fmt.Errorf("%w: the last call to etcd: %w", context.Cause(life), err)
	}
}

// insist calls f until it succeeds or life ends. It is for calls that do no
// harm when an earlier one turns out to have been carried out.
func insist[T any](life context.Context, away outages, f func(context.Context) (T, error)) (T, error) {
	r := newRetry(away)
	for {
		var v T
		err := r.once(life, func(ctx context.Context) (err error) {
			v, err = f(ctx)
			return err
		})
		if err == nil {
			return v, nil
		}
		if err := r.pause(life, err); err != nil {
			return v, err
		}
	}
}

// advice says how to mend what etcd does not get over by itself.
func advice(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return "etcd is full: run `etcdctl compact $(etcdctl endpoint status -w json | grep -o '\"revision\":[0-9]*' | cut -d: -f2)`, " +
			"`etcdctl defrag` and `etcdctl alarm disarm`; then raise --quota-backend-bytes or lower DEDUP_WINDOW"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd wants a user: set ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "etcd does not take the password any more: check ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return "the etcd user needs read and write access to the prefix /service/<role>/"
	case strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "):
		return "the TLS handshake failed: if etcd is up, check ETCD_CACERT, ETCD_CERT and ETCD_KEY"
	}
	return ""
}

// wholeSeconds rounds up: etcd counts a lease in seconds.
func wholeSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// leaseName is a lease as etcdctl prints it.
func leaseName(id clientv3.LeaseID) string { return fmt.Sprintf("%016x", int64(id)) }
