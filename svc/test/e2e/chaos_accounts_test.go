package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// allowDuplicates allows work of a replica to be done again if it ran between from and
// to, up to most ids, or waited for its record in the second before from. While etcd is
// unreachable, that is all work of the ids that the replica has claimed.
func (c *chaos) allowDuplicates(reason string, from, to time.Time, most int) {
	w := window{reason, from.Add(-time.Second), to, most + 2*120, 0}
	if since, was := c.etcdUnreachable(from); was && since.Before(w.from) {
		began := since.Add(-time.Second)
		w = window{reason + " while etcd was unreachable", began, to, max(w.most, 2*chaosHeld), 0}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = append(c.windows, w)
}

// finishAndAccount waits until everything is done and prints the accounts.
func (c *chaos) finishAndAccount() {
	t := c.t
	t.Helper()
	c.stopPublishing()
	c.publishing.Wait()
	eventually(t, "everything done, no claim, an empty queue", func() error { return c.allDone("orders", c.published) })
	for _, s := range c.replicas {
		s.alive()
		s.stop()
	}
	c.wantAllDone("orders", c.published)
	dead := max(0, c.depth("orders-queue.dead"))

	c.mu.Lock()
	defer c.mu.Unlock()
	lost, twice := 0, 0
	for i := range c.published {
		id := fmt.Sprint("w", i)
		entries := c.entries[id]
		if len(entries) == 0 {
			lost++
			continue
		}
		slices.SortFunc(entries, func(a, b work) int { return cmp.Compare(a.token, b.token) })
		for i, w := range entries[:len(entries)-1] {
			twice++
			if !c.account(id, w) {
				t.Errorf("%s was done with token %d from %s to %s and again with %d at %s, and no fault explains it",
					id, w.token, clock(w.began), clock(w.ended), entries[i+1].token, clock(entries[i+1].began))
			}
		}
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.drawn)) {
		fmt.Fprintf(&out, "  %3d %s\n", c.drawn[name], name)
	}
	fmt.Fprintf(&out, "%d done, %d of their posts asked again with the same token, %d refused\n", c.published-lost, c.asked, c.refused)
	fmt.Fprintf(&out, "%d done twice:\n", twice)
	for reason, n := range c.reasons() {
		fmt.Fprintf(&out, "  %3d of at most %d because %s (%d times)\n", n.used, n.most, reason, n.times)
	}
	t.Logf("%d events, each published twice; faults:\n%s%d lost, %d dead letters", c.published, &out, lost, dead)
	for _, w := range c.windows {
		if w.used > w.most {
			t.Errorf("%d ids were done twice because %s at %s, at most %d are allowed", w.used, w.reason, clock(w.to), w.most)
		}
	}
	if lost > 0 || dead > 0 {
		t.Errorf("%d events were lost, %d dead-lettered", lost, dead)
	}
}

// account attributes work that was done again to a window. It returns false if there is
// none. Work whose answer was lost waits for its next attempt, which a webhook that answers
// 503 may delay beyond the beginning of a window, or for its next delivery, if the event was
// requeued.
func (c *chaos) account(id string, w work) bool {
	for i := range c.windows {
		if f := &c.windows[i]; w.began.Before(f.to) && (w.ended.After(f.from) || !w.answered) {
			f.used++
			return true
		}
	}
	return !w.answered && slices.ContainsFunc(slices.Concat(c.ended, c.replicas), func(s *service) bool {
		return strings.Contains(s.log.String(), "msg=requeued service=orders type=new_order id="+id+"\n")
	})
}

type total struct{ used, most, times int }

func (c *chaos) reasons() map[string]total {
	totals := make(map[string]total)
	for _, w := range c.windows {
		n := totals[w.reason]
		totals[w.reason] = total{n.used + w.used, n.most + w.most, n.times + 1}
	}
	return totals
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }
