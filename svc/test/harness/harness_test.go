package harness

import (
	"context"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startShell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start("sh", exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// Stop accepts only exit status 0 after SIGTERM, and any status after Kill.
func TestStop(t *testing.T) {
	const ready = "; echo ready; while :; do read x; done"
	for name, tt := range map[string]struct {
		script string
		before func(*Process) // runs before Stop
		want   string         // part of the error; empty: no error
	}{
		"status 0":     {"trap 'exit 0' TERM", func(*Process) {}, ""},
		"status 3":     {"trap 'exit 3' TERM", func(*Process) {}, "exit status 3"},
		"no handler":   {":", func(*Process) {}, "signal: terminated"},
		"killed":       {":", (*Process).Kill, ""},
		"ended itself": {"echo ready; exit 0", func(p *Process) { <-p.Exited() }, "ended by itself: exit status 0"},
		"stopped": {"trap 'exit 0' TERM", func(p *Process) {
			if err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}, ""},
	} {
		p := startShell(t, tt.script+ready)
		if _, err := p.Log.Wait(timeout(t), 1, "ready"); err != nil {
			t.Fatal(name, err)
		}
		tt.before(p)
		err := p.Stop(timeout(t))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestLog(t *testing.T) {
	p := startShell(t, "echo a 1; echo b 1 >&2; echo msg=processed; echo a 2; printf 'a 3'")
	if line, err := p.Log.Wait(timeout(t), 2, "a"); err != nil || line != "a 2\n" {
		t.Errorf("%q, %v", line, err)
	}
	// The third line does not end with a newline.
	if _, err := p.Log.Wait(timeout(t), 3, "a"); err == nil || !strings.Contains(err.Error(), "2 of 3 lines") {
		t.Errorf("the error is %v", err)
	}
	if n := p.Log.Count("1", "b"); n != 1 {
		t.Errorf("%d lines contain 1 and b, want 1", n)
	}
	if got := strings.Join(p.Log.Tail(3), "|"); got != "b 1|a 2|a 3" {
		t.Errorf("the tail is %q", got)
	}
}

func TestReceiver(t *testing.T) {
	r := NewReceiver(func(_ context.Context, p Post) int {
		switch p.Body {
		case "fail":
			return http.StatusInternalServerError
		case "break off":
			return 0
		}
		return http.StatusOK
	})
	defer r.Close()
	// Without keep-alives, because a client repeats a request that fails on a reused
	// connection.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	post := func(key, token, body string) {
		req, err := http.NewRequestWithContext(timeout(t), "POST", r.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", key)
		req.Header.Set("X-Fencing-Token", token)
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if brokeOff := err != nil; brokeOff != (body == "break off") {
			t.Errorf("%s: %v", key, err)
		}
	}
	post("orders/1", "5", "")
	post("orders/1", "5", "") // repeats the same work
	post("orders/2", "6", "")
	post("orders/2", "7", "")
	post("orders/3", "8", "fail")
	post("orders/4", "9", "break off")
	post("notify/3", "9", "")
	once, lost, twice := r.Accounts("orders", []string{"1", "2", "3", "4"})
	if once != 1 || lost != 2 || twice != 1 {
		t.Errorf("%d done once, %d lost, %d done twice, want 1, 2 and 1", once, lost, twice)
	}
	if err := r.Wait(timeout(t), func(posts []Post) bool { return len(posts) == 7 }); err != nil {
		t.Error(err)
	}
}
