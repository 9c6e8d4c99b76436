package consume_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
)

// tenants is a handler of events whose ids begin with the name of a tenant. The work of those
// that are down is Unavailable.
type tenants struct {
	mu    sync.Mutex
	down  string // the first letters of the tenants that are
	calls map[string][]time.Time
}

func (h *tenants) work(_ context.Context, job consume.Job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.calls == nil {
		h.calls = make(map[string][]time.Time)
	}
	h.calls[job.ID] = append(h.calls[job.ID], time.Now())
	if strings.Contains(h.down, job.ID[:1]) {
		return consume.Unavailable(errBoom, 0)
	}
	return nil
}

func (h *tenants) set(down string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}

// count returns the calls so far.
func (h *tenants) count() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, calls := range h.calls {
		n += len(calls)
	}
	return n
}

// refusals returns a process that may hold 20 deliveries, and handles n of tenant a, which is down.
func refusals(t *testing.T, h *tenants, n int) *process {
	p := newProcess(t, h.work)
	p.Semaphore = make(consume.Semaphore, 4)
	p.hold(t, n)
	return p
}

// hold handles n more deliveries of tenant a, of ids that go on from those before.
func (p *process) hold(t *testing.T, n int) {
	for range n {
		p.ids++
		p.handle(t.Context(), p.held("a"+fmt.Sprint(p.ids)))
	}
}

func (p *process) held(id string) *delivery {
	d := p.order(id)
	d.held = 20
	return d
}

// While half of what may be held is refused, 50 events a second are requeued, each after one
// attempt, the first to be refused first. The others stay, and are tried again.
func TestRefusedAreRequeued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &tenants{down: "a"}
		p := refusals(t, h, 9)
		pass(time.Minute)
		if n := p.count("requeue"); n > 0 {
			t.Errorf("%d of 9 are requeued, with 20 held", n)
		}
		p.run(p.held("b1")) // all are tried, since nothing has passed for a minute
		synctest.Wait()
		before := h.count()
		p.hold(t, 8)
		pass(161 * time.Millisecond)
		if n := p.count("requeue"); n != 8 || p.count("ack") != n+1 || p.count("release") != n {
			t.Errorf("%d of 17 are requeued within 161 ms, want 8 (20 held): %v", n, p.lines)
		}
		if n := h.count() - before; n != 8 {
			t.Errorf("%d attempts while events are requeued, want one for each of the 8 that are new", n)
		}
		if p.count("release a9") > 0 {
			t.Error("a9 is requeued, and was not refused before a1 to a8")
		}
		pass(time.Minute)
		if n := p.count("requeue"); n != 8 {
			t.Errorf("%d are requeued, want no more than half of what is held", n)
		}
		if n := h.count() - before; n < 8+9*2 {
			t.Errorf("%d attempts in a minute, those that stay are not tried again", n)
		}
	})
}

// When nothing has passed for a minute, one event a second is requeued, and Refused says so.
// When work passes again, all that wait are tried at once.
func TestNothingPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &tenants{down: "ab"}
		p := refusals(t, h, 0)
		p.Outage.Logger, p.Outage.Level = p.Log, slog.LevelWarn
		p.hold(t, 1)
		if err := p.Refused(t.Context()); err != nil {
			t.Errorf("at once: %v", err)
		}
		pass(time.Minute + time.Second)
		if err := p.Refused(t.Context()); err == nil || err.Error() != "no event has passed for 1m1s, and 1 wait: boom" {
			t.Errorf("after a minute: %v", err)
		}
		p.hold(t, 19)
		pass(5*time.Second + time.Millisecond)
		if n := p.count("requeue"); n != 5 {
			t.Errorf("%d are requeued in 5 s, want 5", n)
		}
		h.set("")
		before := h.count()
		p.run(p.held("b1"))
		synctest.Wait()
		if n := h.count() - before; n != 1+15 {
			t.Errorf("%d attempts at once, want 16: %v", n, p.lines)
		}
		if n := p.count("msg=processed"); n != 16 || p.Refused(t.Context()) != nil {
			t.Errorf("%d are processed; %v", n, p.Refused(t.Context()))
		}
		p.run(p.held("b2"))
		pass(2 * time.Second) // for the event that was about to be requeued
		if p.count("level=WARN msg=unavailable error=boom id=a1") != 1 || p.count("level=WARN") != 1 || p.count("msg=available") != 1 {
			t.Errorf("the outage is not logged once: %v", p.lines)
		}
	})
}

// While the broker refuses the copies, one a second is tried, and the events wait in turn. With
// one slot, which keeps the order, none is.
func TestRefusedStay(t *testing.T) {
	for slots, want := range map[int]int{1: 0, 4: 10} {
		t.Run(fmt.Sprint(slots, " slots"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &tenants{down: "a"}
				p := refusals(t, h, 0)
				p.Semaphore = make(consume.Semaphore, slots)
				for id := range 20 {
					d := p.held(fmt.Sprint("a", id))
					d.refused = 1
					p.handle(t.Context(), d)
				}
				pass(9*time.Second + 21*time.Millisecond)
				if n := p.count("requeue: refused"); n != want {
					t.Errorf("%d copies are refused in 9 s, want %d", n, want)
				}
				if n := h.count(); n < 40 {
					t.Errorf("%d attempts in 9 s, the events are not tried again", n)
				}
				h.set("")
				p.run(p.held("b1"))
				synctest.Wait()
				if n := p.count("msg=processed"); n != 21 {
					t.Errorf("%d are processed, want 21", n)
				}
			})
		})
	}
}
