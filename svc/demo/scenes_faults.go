package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// Scenes 4 to 7, which go beyond the talk.

// longClaims makes claims last when a busy machine stalls a service or a server. If they
// expired, work would rightly be repeated, and that is not what scenes 6 and 7 show.
const longClaims = "CLAIM_TTL=1m"

// crash kills orders while it works.
func crash(s *script) {
	const n, workTime = 10, 1500 * time.Millisecond
	var begun atomic.Int32
	receiver := s.receive(func(ctx context.Context, _ harness.Post) int {
		done := time.After(workTime)
		if begun.Add(1) <= n {
			done = nil // on a slow machine, too, the kill comes first
		}
		select {
		case <-done:
			return http.StatusNoContent
		case <-ctx.Done(): // the sender was killed, so the work is not done
			return 0
		}
	})
	vars := []string{"ENABLE_ETCD=true", "CLAIM_TTL=2s", "WEBHOOK_URL=" + receiver.URL}
	s.start("notify", "ENABLE_ETCD=true") // works fast and is not killed
	victim := s.start("orders", vars...)
	ids := harness.IDs("crash-", 0, n)
	s.say("%d events. The work takes %.1f s each.", n, workTime.Seconds())
	s.publish(ids...)
	s.until(func() bool { return begun.Load() >= n })
	recorded := s.kill(victim)
	killed := time.Now()
	s.expect("work done before the kill", recorded, 0)
	s.expect("work begun before the kill", int(begun.Load()), n)

	s.say("kill -9 in the middle of %d of them. The broker still has them.", n)
	s.say("orders is restarted, and waits for the claims of the killed process to expire.")
	s.start("orders", vars...)
	s.expectBoth("", n, 0)
	s.say("All are done, %.1f s after the crash.", time.Since(killed).Seconds())
	s.expectWork(receiver, "orders", ids)
}

// crashWindow kills orders between its work and the record. Two receivers get each post:
// a plain one, for which each post has an effect, and svc/receiver.
func crashWindow(s *script) {
	const n = 10
	careful := s.startReceiver()
	var effects atomic.Int32
	plain := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(careful) },
		ModifyResponse: func(answer *http.Response) error {
			// svc/receiver has had its effect. The first n posts get no answer.
			if effects.Add(1) <= n {
				<-answer.Request.Context().Done() // until the sender is killed
			}
			return nil
		},
	})
	s.closeLater(func() error { plain.Close(); return nil })
	vars := []string{"ENABLE_ETCD=true", "CLAIM_TTL=2s", "WEBHOOK_URL=" + plain.URL}
	s.start("notify", "ENABLE_ETCD=true") // is not killed
	victim := s.start("orders", vars...)

	s.say("%d events. The receivers act at once, but withhold their answers.", n)
	s.publish(harness.IDs("window-", 0, n)...)
	s.until(func() bool { return effects.Load() >= n })
	recorded := s.kill(victim)
	s.expect("recorded before the kill", recorded, 0)
	s.say("kill -9: all %d effects have happened, and no id is recorded.", n)

	s.start("orders", vars...)
	s.expectBoth("", n, 0)
	s.expect("effects at a plain receiver", int(effects.Load()), 2*n)
	s.expect("effects at svc/receiver", s.effects(careful), n)
	s.say("The work was repeated. svc/receiver recognized the keys, the plain receiver did not.")
}

// startReceiver starts svc/receiver and returns its URL.
func (s *script) startReceiver() *url.URL {
	cmd := exec.Command(filepath.Join(s.dir, "receiver"), "-addr", "127.0.0.1:0", "-db", filepath.Join(s.dir, "receiver.db"))
	_, line := s.launch("svc/receiver", cmd, "listening at ")
	_, host, _ := strings.Cut(strings.TrimSpace(line), "http://")
	return &url.URL{Scheme: "http", Host: host}
}

// effects asks svc/receiver for the number of effects.
func (s *script) effects(receiver *url.URL) (n int) {
	s.step(func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, receiver.String(), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = fmt.Fscan(resp.Body, &n)
		return err
	})
	return n
}

// race has two replicas compete for the same events.
func race(s *script) {
	const n, copies = 1000, 3
	receiver := s.receive(nil)
	for _, role := range []string{"orders", "orders", "notify"} {
		s.start(role, "ENABLE_ETCD=true", longClaims, "WEBHOOK_URL="+receiver.URL)
	}
	ids := harness.IDs("race-", 0, n)
	all := slices.Repeat(ids, copies)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s.say("Two replicas of orders, one notify. 3,000 messages, shuffled, at 500 a second.")
	began := time.Now()
	s.publishAt(500, all)
	for _, role := range roles {
		s.expectCounted(role, "", n, n*(copies-1))
		s.expectWork(receiver, role, ids)
	}
	s.say("Both services are done, after %.1f s.", time.Since(began).Seconds())
}

// outage kills etcd and then the broker under load.
func outage(s *script) {
	receiver := s.receive(nil)
	// With a small PREFETCH most waiting events stay in the queue, whose depth is shown.
	s.startBoth("ENABLE_ETCD=true", longClaims, "PREFETCH=50", "WEBHOOK_URL="+receiver.URL)
	stop := s.load("outage-", 300)
	s.say("300 events a second.")
	s.wait(1500 * time.Millisecond)

	s.killServer("etcd", s.servers.Etcd.Server)
	s.say("kill -9 of etcd. No id can be claimed: the events wait.")
	s.wait(2500 * time.Millisecond)
	s.restartServer(s.servers.Etcd.Server)
	s.say("etcd is back.")
	s.wait(2 * time.Second)

	s.killServer("RabbitMQ", s.servers.Rabbit.Server)
	s.say("kill -9 of RabbitMQ. Nothing can be published or acknowledged.")
	s.restartServer(s.servers.Rabbit.Server)
	s.say("RabbitMQ is back. The publisher and the services connect again, within five seconds.")
	s.wait(2 * time.Second)

	ids := stop()
	n := len(ids)
	s.say("%d events were published. The services process the backlog.", n)
	for _, role := range roles {
		s.until(func() bool { ok, _ := s.status.counted(role); return ok >= n })
	}
	s.waitAcknowledged()  // duplicates may come after the last event
	s.stop(s.services...) // they send their last counts
	for _, role := range roles {
		ok, skipped := s.status.counted(role)
		s.expect(role+" ok", ok, n)
		s.expectWork(receiver, role, ids)
		if skipped > 0 {
			s.screen.note(fmt.Sprintf("%s skipped %d duplicates: published again, or redelivered.", role, skipped))
		}
	}
}
