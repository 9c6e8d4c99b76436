package etcd

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The hint of an error says what to set, however the error is wrapped.
func TestHint(t *testing.T) {
	for err, want := range map[error]string{
		rpctypes.ErrNoSpace:          "--auto-compaction-retention",
		rpctypes.ErrTooManyOps:       "--max-txn-ops to 48",
		rpctypes.ErrPermissionDenied: "ETCD_PREFIX",
	} {
		if hint := Hint(fmt.Errorf("a call: %w", err)); !strings.Contains(hint, want) {
			t.Errorf("the hint of %v is %q, want %q in it", err, hint, want)
		}
	}
}
