package claim_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var checkedOps = flag.Int("checked.ops", 5000, "operations of each checked history: on one member of etcd, and on three")

const (
	claimers = 8
	workers  = 8  // per claimer
	liveIDs  = 24 // ids that events arrive for at one time
	ttl      = 2 * time.Second
	// maxWait bounds the wait at the end of a run, on a busy machine.
	maxWait = 2 * time.Minute
)

// The history of each id follows the rule through faults of connections, of
// members of etcd and of processes.
func TestCheckedHistories(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("members=%d", members), func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, members, stack.EtcdOptions{})
			r := newRun(t, etcd, *checkedOps)
			r.links = newLinks(t, etcd)
			if left := r.work(maxWait, breakThings(t, etcd, r.links)); left != "" {
				t.Error(left)
			}
			r.askAgain(etcd[0])
			if wrong := r.wrong(); wrong != "" {
				t.Error(wrong)
			}
			t.Logf("%d operations on %d ids in %d processes: %v", r.total, len(r.ops), r.processes.Load(), r.count)
		})
	}
}

// The check detects a broken claimer among seven others.
func TestCheckedHistoriesNotice(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, 1, stack.EtcdOptions{})
	for _, test := range []struct {
		name   string
		rounds int // at most
		wrap   func(*clientv3.Client)
		want   string // part of the report; empty: none
	}{
		{"nothing", 2, func(*clientv3.Client) {}, ""},
		{"claims of others are not seen", 10, ignoreClaims, "illegal"},
		{"records are lost", 10, splitting(withoutRecords), "illegal"},
		{"ids are taken off before they are recorded", 10, splitting(recordsLater), "illegal"},
		{"copies of writes without a condition", 10, splitting(copied), "are left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			noticed := ""
			for round := 0; round < test.rounds && noticed == ""; round++ {
				r := newRun(t, etcd, 1000)
				r.wrap = test.wrap
				noticed = r.work(2*ttl, func() {}) + r.wrong()
				t.Logf("after %d operations: %s", r.total, noticed)
			}
			if (noticed == "") != (test.want == "") || !strings.Contains(noticed, test.want) {
				t.Errorf("noticed: %q, want %q", noticed, test.want)
			}
		})
	}
}
