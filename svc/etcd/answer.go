package etcd

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failed notes a try that etcd refused or did not answer.
func (c *Client) failed(kind string, began time.Time, err error) {
	if isRefusal(err) {
		c.refused.Store(kind)
		c.refusals.Failed(began, err, Hint(err), "call", kind)
	} else {
		c.unreachable.Failed(began, err, Hint(err))
	}
}

// answered notes a call that was carried out. Refusals end with a call of the kind that was
// refused last: a full etcd answers other kinds all the time.
func (c *Client) answered(kind string, began time.Time) {
	c.unreachable.Answered(began)
	if c.refused.Load() == kind {
		c.refusals.Answered(began)
	}
}

// isRefusal reports whether etcd refuses a call, and will do so until an operator changes
// something.
func isRefusal(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) { // etcd is overloaded for the moment
		return false
	}
	code := status.Code(err)
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = e.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.OutOfRange, codes.PermissionDenied, codes.ResourceExhausted, codes.NotFound, codes.Unimplemented:
		return true
	}
	return false
}

// Hint says how to fix what etcd does not recover from by itself.
func Hint(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return "etcd is full: run `etcdctl compact $(etcdctl endpoint status -w json | grep -o '\"revision\":[0-9]*' | cut -d: -f2)`, " +
			"`etcdctl defrag` and `etcdctl alarm disarm`; then raise --quota-backend-bytes, lower DEDUP_WINDOW, " +
			"or set --auto-compaction-retention=5m: without it etcd keeps all old revisions"
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Sprintf("set etcd's --max-txn-ops to %d at least", MaxOps)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return "set etcd's --max-request-bytes to 524288 at least"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd requires a user: set ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "etcd refuses the password: check ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return "grant the etcd user read and write access to the prefix /service/<role>/, with your ETCD_PREFIX in place of /service/"
	case strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "):
		return "the TLS handshake failed: if etcd is up, check ETCD_CACERT, ETCD_CERT and ETCD_KEY"
	}
	return ""
}
