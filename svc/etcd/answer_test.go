package etcd

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// However an error is wrapped, it is known whether etcd refuses a call, and the hint says what to
// set. An overloaded etcd is not taken for one that refuses.
func TestAnswer(t *testing.T) {
	for _, tt := range []struct {
		err     error
		refusal bool
		hint    string
	}{
		{rpctypes.ErrNoSpace, true, "--auto-compaction-retention"},
		{rpctypes.ErrTooManyOps, true, "--max-txn-ops to 48"},
		{rpctypes.ErrRequestTooLarge, true, "--max-request-bytes"},
		{rpctypes.ErrUserEmpty, true, "set ETCD_USERNAME"},
		{rpctypes.ErrAuthFailed, true, "check ETCD_USERNAME"},
		{rpctypes.ErrPermissionDenied, true, "ETCD_PREFIX"},
		{rpctypes.ErrTooManyRequests, false, ""},
		{errors.New("x509: certificate signed by unknown authority"), false, "ETCD_CACERT"},
	} {
		err := fmt.Errorf("write 2: %w", tt.err)
		if got := isRefusal(err); got != tt.refusal {
			t.Errorf("%v is a refusal: %t", err, got)
		}
		if hint := Hint(err); (hint == "") != (tt.hint == "") || !strings.Contains(hint, tt.hint) {
			t.Errorf("the hint of %v is %q, want %q in it", err, hint, tt.hint)
		}
	}
}
