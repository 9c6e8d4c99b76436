package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// window is a period in which work may be done without being recorded, so that it may be
// done again.
type window struct {
	reason   string
	from, to time.Time
	most     int // maximum number of ids that it may explain
	used     int // number of ids that it has explained
}

// allow allows work to be done again if it ran between from and to, up to most ids, or waited
// for its record in the second before from.
func (w *faultEnv) allow(reason string, from, to time.Time, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.windows = append(w.windows, window{reason, from.Add(-time.Second), to, most, 0})
}

// work is what was done for an id under one token.
type work struct {
	token        int64
	began, ended time.Time
	answered     bool // otherwise its replica does not know that the work was done
}

// done returns the work that the receiver has done, by id and in the order of the tokens, and
// how many posts repeated some.
func (w *faultEnv) done() (done map[string][]work, asked int) {
	done = make(map[string][]work)
	for _, p := range w.receiver.all() {
		if p.Status == http.StatusServiceUnavailable {
			continue
		}
		i, found := slices.BinarySearchFunc(done[p.ID], p.Token, func(w work, token int64) int { return cmp.Compare(w.token, token) })
		if found {
			asked++
		} else {
			done[p.ID] = slices.Insert(done[p.ID], i, work{token: p.Token, began: p.Began})
		}
		done[p.ID][i].ended, done[p.ID][i].answered = p.Ended, done[p.ID][i].answered || p.Status != 0
	}
	return done, asked
}

// finish stops publishing and waits until everything is done. It checks that the replicas are
// alive and stops them. Then it checks that no event was lost or dead-lettered, and that a
// fault explains all work that was done twice: it must have lasted while the work was done or
// recorded.
func (w *faultEnv) finish() {
	w.t.Helper()
	w.stopPublishing()
	w.publishing.Wait()
	eventually(w.t, "everything done, no claim, an empty queue", func() error { return w.allDone("orders", w.published) })
	for _, s := range w.replicas {
		s.alive()
		s.stop()
	}
	w.wantAllDone("orders", w.published)
	done, asked := w.done()
	lost, twice := 0, 0
	for i := range w.published {
		works := done[fmt.Sprint("w", i)]
		if w.tokensGoBack {
			slices.SortFunc(works, func(a, b work) int { return a.began.Compare(b.began) })
		}
		if len(works) == 0 {
			lost++
			continue
		}
		for j, again := range works[1:] {
			twice++
			if !w.account(fmt.Sprint("w", i), works[j]) {
				w.t.Errorf("w%d was done with token %d from %s to %s and again with %d at %s, and no fault explains it",
					i, works[j].token, clock(works[j].began), clock(works[j].ended), again.token, clock(again.began))
			}
		}
	}
	w.t.Logf("%d events, %d posts asked again with the same token, %d done twice", w.published, asked, twice)
	for _, window := range w.windows {
		explained := fmt.Sprintf("%d of at most %d were done twice because %s at %s", window.used, window.most, window.reason, clock(window.to))
		if window.used > window.most {
			w.t.Error(explained)
		} else if window.used > 0 {
			w.t.Log(explained)
		}
	}
	if dead := w.depth("orders-queue.dead"); lost > 0 || dead > 0 {
		w.t.Errorf("%d events were lost, %d dead-lettered", lost, dead)
	}
}

// account attributes work that was done again to a window. It returns false if there is
// none. Work whose answer was lost waits for its next attempt, which a webhook that answers
// 503 may delay beyond the beginning of a window, or for its next delivery, if the event was
// requeued.
func (w *faultEnv) account(id string, done work) bool {
	i := slices.IndexFunc(w.windows, func(w window) bool {
		return done.began.Before(w.to) && (done.ended.After(w.from) || !done.answered)
	})
	if i >= 0 {
		w.windows[i].used++
		return true
	}
	return !done.answered && slices.ContainsFunc(slices.Concat(w.ended, w.replicas), func(s *service) bool {
		return s.log.count("msg=requeued service=orders type=new_order id="+id+"\n") > 0
	})
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }
