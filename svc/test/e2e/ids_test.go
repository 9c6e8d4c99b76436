package e2e

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An id may be any text. Ids that look alike are different, and each is processed once.
func TestOddIDs(t *testing.T) {
	e := newEnv(t)
	e.topology("orders")
	receiver := newReceiver(t, nil)
	ids := legalIDs()
	var bodies []string
	for _, id := range ids {
		body := order(id)
		bodies = append(bodies, body, strings.ReplaceAll(body, `new_order`, `new\u005forder`)) // the same event, other bytes
	}
	vars := []string{"ENABLE_ETCD=true", "WEBHOOK_URL=" + receiver.URL}
	a, b := e.start("orders", vars...), e.start("orders", vars...)
	a.waitLog("msg=consuming")
	b.waitLog("msg=consuming")
	e.publishBodies(bodies...)
	n := int64(len(ids))
	e.waitCounts(map[string]int64{"orders_new_order_ok": n, "orders_new_order_skipped": n})
	eventually(t, "everything done", func() error { return e.allDone("orders", len(ids)) })
	done := e.keys("orders").done()
	for _, id := range ids {
		if !done[id] {
			t.Errorf("there is no record of %q", id)
		}
	}
	var posted []string
	for _, p := range receiver.all() {
		posted = append(posted, unescape(t, p.ID))
		if p.Attempt != 1 {
			t.Errorf("%q was posted as attempt %d, want 1", p.ID, p.Attempt)
		}
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(ids)), slices.Sorted(slices.Values(posted))); diff != "" {
		t.Errorf("posts (-want +got):\n%s", diff)
	}
	a.stop()
	b.stop()

	// The warm-up finds all of them.
	c := e.start("orders", vars...)
	c.waitLog(`msg="cache warmed"`, fmt.Sprint("ids=", len(ids)))
	e.publishBodies(bodies...)
	e.waitCounts(map[string]int64{"orders_new_order_ok": n, "orders_new_order_skipped": 3 * n})
	c.stop()
	e.wantStored()
}

func unescape(t *testing.T, id string) string {
	t.Helper()
	id, err := url.PathUnescape(id)
	if err != nil {
		t.Errorf("the key %q cannot be unescaped: %v", id, err)
	}
	return id
}

// quoteJSON quotes s as the service does, with few escapes.
func quoteJSON(s string) string { return strings.Trim(string(listIDs([]string{s})), "[]") }
