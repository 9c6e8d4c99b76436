package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// refusals holds the calls that etcd refuses for reasons that only an operator can end.
// That is not an outage: other calls may succeed meanwhile, since a full etcd answers reads.
type refusals struct {
	log *slog.Logger

	mu       sync.Mutex
	calls    map[any]error // by a pointer that identifies the call
	accepted bool          // a call that was refused has succeeded since the last refusal
}

func newRefusals(log *slog.Logger) *refusals { return &refusals{log: log, calls: make(map[any]error)} }

// begin notes that a call is refused, and logs it unless another call, or an earlier try
// of this one, was refused in the same words.
func (r *refusals) begin(call any, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := false
	for _, other := range r.calls {
		known = known || other.Error() == err.Error()
	}
	r.accepted = false
	if r.calls[call] = err; !known {
		r.log.Error("etcd refuses a call: events wait unacknowledged", "error", err, "hint", Hint(err))
	}
}

// end notes that a call has succeeded or is given up. It may have been refused before. The
// last refused call of several may be given up: the others have succeeded all the same.
func (r *refusals) end(call any, succeeded bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, refused := r.calls[call]
	r.accepted = r.accepted || refused && succeeded
	if delete(r.calls, call); r.accepted && len(r.calls) == 0 {
		r.accepted = false
		r.log.Info("etcd accepts calls again")
	}
}

// current returns a refusal that calls meet now, or nil.
func (r *refusals) current() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.calls {
		return err
	}
	return nil
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
			"`etcdctl defrag` and `etcdctl alarm disarm`; then raise --quota-backend-bytes or lower DEDUP_WINDOW"
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Sprintf("set etcd's --max-txn-ops to %d at least", MaxOps)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return "set etcd's --max-request-bytes to 524288 at least"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd requires a user: set ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "etcd refuses the password: check ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return "grant the etcd user read and write access to the prefix /service/<role>/"
	case strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "):
		return "the TLS handshake failed: if etcd is up, check ETCD_CACERT, ETCD_CERT and ETCD_KEY"
	}
	return ""
}
