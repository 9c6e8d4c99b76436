package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// In a rolling deploy the new replica handles a type that the old one does not. The old one
// ignores none of these events, and what the new one gets has kept where it came from. Where the
// user may not put events at the end of the queue, they wait until the old one stops.
func TestRollingDeploy(t *testing.T) {
	const events = 200
	t.Parallel()
	vhost := newVhost(t)
	broker(t, addUser(vhost), permit(vhost, ".*", "^orders-queue$", ".*"))
	e := newBrokerEnv(t, vhost, "orders")
	e.etcdEndpoints = shared.etcd.Endpoint()
	newer := buildWith(t, "roles.go", `"new_order": processOrder`, `"new_order": processOrder, "refund": refund`, `
func refund(_ context.Context, job consume.Job) error {
	if job.ID == "r0" {
		return consume.Permanent(context.Canceled)
	}
	return nil
}`)
	vars := []string{"ENABLE_ETCD=true", "ETCD_PREFIX=/" + vhost + "/"}
	may := append(vars, "AMQP_URL="+e.directAMQP)
	first := e.start("orders", may...)
	first.waitLog("msg=consuming")
	second := e.startBinary(exec.Command(newer), "orders", may...)
	second.waitLog("msg=consuming")

	// Consumers are deployed before producers: until the old replica sees the session of the
	// new one it ignores the type.
	ignored := 0
	eventually(t, "a replica that handles the type", func() error {
		if second.log.count("msg=processed") > 0 {
			return nil
		}
		if n := first.log.count("msg=ignored"); n == ignored {
			e.publishBodies(refunds(fmt.Sprint("probe", n, "-"), 1)...)
			ignored++
		}
		return errors.New("no probe is processed")
	})
	ignored = first.log.count("msg=ignored")

	e.publishBodies(refunds("r", events)...)
	e.waitCounts(map[string]int64{"orders_refund_ok": events, "orders_refund_failed": 1, "orders_ignored": int64(ignored)})
	first.stop()
	if letters := e.deadLetters("orders"); len(letters) != 1 || letters[0].Headers["x-exchange"] != "events" {
		t.Errorf("the dead letters are %v", letters)
	}

	mayNot := e.start("orders", vars...)
	mayNot.waitLog("msg=consuming")
	e.publishBodies(refunds("s", 20)...)
	mayNot.waitLog("level=WARN", "the broker refuses an event at the end of the queue", "user's permissions")
	mayNot.stop()
	e.waitCounts(map[string]int64{"orders_refund_ok": events + 20, "orders_ignored": int64(ignored)})

	// Without the new replica, the type is unknown again.
	second.stop()
	last := e.start("orders", may...)
	e.publishBodies(refunds("t", 1)...)
	last.waitLog("msg=ignored")
}

// refunds returns the bodies of n events of type refund with ids of that prefix.
func refunds(prefix string, n int) []string {
	bodies := orders(prefix, n)
	for i, body := range bodies {
		bodies[i] = strings.Replace(body, "new_order", "refund", 1)
	}
	return bodies
}

// buildWith builds the service with a source file in which old is replaced by new, and which
// ends with more.
func buildWith(t *testing.T, file, old, new, more string) string {
	t.Helper()
	dir := t.TempDir()
	path, err := filepath.Abs("../../" + file)
	must(t, err)
	source := readFile(t, path)
	if !strings.Contains(source, old) {
		t.Fatalf("%s does not contain %q", file, old)
	}
	changed, overlay := filepath.Join(dir, file), filepath.Join(dir, "overlay.json")
	replace, _ := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	for name, text := range map[string]string{changed: strings.Replace(source, old, new, 1) + more, overlay: string(replace)} {
		must(t, os.WriteFile(name, []byte(text), 0o600))
	}
	must(t, harness.Build(t.Context(), dir, []string{"svc"}, "-overlay", overlay))
	return filepath.Join(dir, "svc")
}
