package claim

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

// refusals are answers that only an operator can change. Each is logged once, however many
// calls it meets. It is not an outage: other calls may succeed meanwhile, since a full etcd
// answers reads.
type refusals struct {
	log *slog.Logger

	mu    sync.Mutex
	calls map[string]int // that meet a refusal now, by its text
	last  error
}

func newRefusals(log *slog.Logger) *refusals { return &refusals{log: log, calls: make(map[string]int)} }

// begin notes that a call is refused; before, it was refused with another text, or
// not at all (""). It returns the text.
func (r *refusals) begin(before string, err error) string {
	text := err.Error()
	if text == before {
		return text
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(before)
	r.last = err
	r.calls[text]++
	if r.calls[text] == 1 {
		r.log.Error("etcd refuses a call: events wait unacknowledged", "error", err, "hint", Hint(err))
	}
	return text
}

// end notes that a call which was refused with text has succeeded.
func (r *refusals) end(text string) {
	if text == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.remove(text); len(r.calls) == 0 {
		r.log.Info("etcd accepts calls again")
	}
}

// giveUp notes that a call which was refused with text is not tried again.
func (r *refusals) giveUp(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(text)
}

// current returns a refusal that calls meet now, or nil.
func (r *refusals) current() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) == 0 {
		return nil
	}
	return r.last
}

func (r *refusals) remove(text string) {
	if r.calls[text]--; r.calls[text] <= 0 {
		delete(r.calls, text)
	}
}

// isRefusal reports whether etcd has answered, and will not answer otherwise.
func isRefusal(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) { // etcd is overloaded for the moment
		return false
	}
	var code codes.Code
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		code = e.Code()
	} else {
		code = status.Code(err)
	}
	switch code {
	case codes.InvalidArgument, codes.OutOfRange, codes.PermissionDenied, codes.ResourceExhausted, codes.NotFound, codes.Unimplemented:
		return true
	}
	return false
}

const checkEndpoints = "check that etcd is up, and ETCD_ENDPOINTS"

// Hint says how to fix what etcd does not recover from by itself.
func Hint(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return "etcd is full: run `etcdctl compact $(etcdctl endpoint status -w json | grep -o '\"revision\":[0-9]*' | cut -d: -f2)`, " +
			"`etcdctl defrag` and `etcdctl alarm disarm`; then raise --quota-backend-bytes or lower DEDUP_WINDOW"
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Sprintf("set etcd's --max-txn-ops to %d at least", maxOps)
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
