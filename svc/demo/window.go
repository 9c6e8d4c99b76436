package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
)

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
	s.publish(newIDs("window", 0, n)...)
	s.until(func() bool { return effects.Load() >= n })
	s.kill(victim)
	s.expect("effects before the kill", int(effects.Load()), n)
	s.say("kill -9: all %d effects have happened, and no id is recorded.", n)

	s.start("orders", vars...)
	s.expectBoth("", n, 0) // what was recorded before the kill would be skipped
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
