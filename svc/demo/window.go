package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// window kills orders between its work and the record. The work is done at two
// receivers: one has the effect of every post, the other is svc/receiver.
func window(ctx context.Context, s *env) error {
	const n = 10
	careful, err := s.startReceiverProcess()
	if err != nil {
		return err
	}
	defer careful.kill()
	plain := &plainReceiver{next: careful.url}
	server := httptest.NewServer(plain)
	defer server.Close()

	// notify does its work, and goes on.
	if _, err := s.start(ctx, "notify", "ENABLE_ETCD=true"); err != nil {
		return err
	}
	vars := []string{"ENABLE_ETCD=true", "CLAIM_TTL=2s", "WEBHOOK_URL=" + server.URL}
	victim, err := s.start(ctx, "orders", vars...)
	if err != nil {
		return err
	}
	plain.silent.Store(true)
	s.say(ctx, "%d events. The effects are had at once; the answers are held back.", n)
	if err := s.publish(ctx, s.ids("window", n)...); err != nil {
		return err
	}
	s.until(ctx, func() bool { return plain.effects.Load() >= n })
	victim.kill()
	ok, _ := s.seen("orders")
	s.expect("recorded before the kill", ok, 0)
	s.say(ctx, "kill -9: all effects were had, and no id is recorded.")

	plain.silent.Store(false)
	if _, err := s.start(ctx, "orders", vars...); err != nil {
		return err
	}
	for _, role := range roles {
		s.settle(ctx, role, n)
		s.expectSeen(role, "", n, 0)
	}
	s.expect("effects at a plain receiver", plain.effects.Load(), 2*n)
	effects, err := careful.effects(ctx)
	if err != nil {
		return err
	}
	s.expect("effects at svc/receiver", effects, n)
	s.say(ctx, "The work is done again. The key lets svc/receiver see that: no effect twice.")
	return nil
}

// plainReceiver has the effect of every post, and passes the post on to another
// receiver.
type plainReceiver struct {
	next    string
	effects atomic.Int64
	silent  atomic.Bool // answer nothing: the sender is about to die
}

func (p *plainReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	post, err := http.NewRequest("POST", p.next, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	post.Header = r.Header
	resp, err := http.DefaultClient.Do(post)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	resp.Body.Close()
	p.effects.Add(1)
	if p.silent.Load() {
		<-r.Context().Done() // the sender has died
		return
	}
	w.WriteHeader(resp.StatusCode)
}

// receiverProcess is a process of svc/receiver.
type receiverProcess struct {
	url   string
	cmd   *exec.Cmd
	ended sync.WaitGroup
}

func (s *env) startReceiverProcess() (*receiverProcess, error) {
	r := &receiverProcess{cmd: exec.Command(s.receiverBin, "-addr", "127.0.0.1:0", "-db", filepath.Join(s.dir, "receiver.db"))}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ctrl-c is the demo's to act on
	log, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start svc/receiver: %w", err)
	}
	lines := bufio.NewReader(log)
	first, err := lines.ReadString('\n')
	r.ended.Go(func() {
		io.Copy(io.Discard, lines)
		r.cmd.Wait()
	})
	_, url, found := strings.Cut(strings.TrimSpace(first), "listening at ")
	if err != nil || !found {
		r.kill()
		return nil, fmt.Errorf("start svc/receiver: it says %q", first)
	}
	r.url = url
	return r, nil
}

func (r *receiverProcess) kill() {
	r.cmd.Process.Kill()
	r.ended.Wait()
}

// effects asks how many effects there were.
func (r *receiverProcess) effects(ctx context.Context) (n int64, err error) {
	get, err := http.NewRequestWithContext(ctx, "GET", r.url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(get)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = fmt.Fscan(resp.Body, &n)
	return n, err
}
