package main

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/streamdal/gophercon2021/svc/harness"
)

// crashWindow kills orders between its work and the record. Two receivers get each post:
// a plain one, for which each post has an effect, and svc/receiver.
func crashWindow(s *script) {
	const n = 10
	careful := s.startReceiver()
	var effects atomic.Int64
	var silent atomic.Bool
	plain := s.receive(func(ctx context.Context, p harness.Post) int {
		status, err := forward(p, careful)
		if err != nil {
			return http.StatusBadGateway
		}
		effects.Add(1)
		if silent.Load() {
			<-ctx.Done() // until the sender is killed
			return 0
		}
		return status
	})
	vars := []string{"ENABLE_ETCD=true", "CLAIM_TTL=2s", "WEBHOOK_URL=" + plain.URL}
	s.start("notify", "ENABLE_ETCD=true") // is not killed
	victim := s.start("orders", vars...)

	silent.Store(true)
	s.say("%d events. The receivers act at once, but withhold their answers.", n)
	s.publish(newIDs("window", 0, n)...)
	s.until(func() bool { return effects.Load() >= n })
	s.kill(victim)
	ok, _ := s.status.counted("orders")
	s.expect("recorded before the kill", ok, 0)
	s.say("kill -9: all %d effects have happened, and no id is recorded.", n)

	silent.Store(false)
	s.start("orders", vars...)
	s.expectBoth("", n, 0)
	s.expect("effects at a plain receiver", effects.Load(), 2*n)
	s.expect("effects at svc/receiver", s.effects(careful), n)
	s.say("The work was repeated. svc/receiver recognized the keys, the plain receiver did not.")
}

// startReceiver starts svc/receiver and returns its URL.
func (s *script) startReceiver() (url string) {
	s.step(func(context.Context) error {
		cmd := exec.Command(filepath.Join(s.dir, "receiver"), "-addr", "127.0.0.1:0", "-db", filepath.Join(s.dir, "receiver.db"))
		_, line, err := s.launch("svc/receiver", cmd, "listening at ")
		_, url, _ = strings.Cut(strings.TrimSpace(line), "listening at ")
		return err
	})
	return url
}

// forward forwards a post to another receiver and returns its answer.
func forward(p harness.Post, url string) (status int, err error) {
	// The request does not use the sender's ctx: a killed sender must not prevent the
	// effect.
	req, err := http.NewRequest("POST", url, strings.NewReader(p.Body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Idempotency-Key", p.Role+"/"+p.ID)
	req.Header.Set("X-Fencing-Token", fmt.Sprint(p.Token))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// effects asks svc/receiver for the number of effects.
func (s *script) effects(url string) (n int64) {
	s.step(func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
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
