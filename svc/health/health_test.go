package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// A status is ready when every part is ready. It reports since when each part has its
// state.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		b := NewStatus("broker", "etcd")
		h := b.Handler(func() map[string]int64 { return map[string]int64{"orders_new_order_ok": 3} })
		want := func(code int, ready bool, since time.Duration, errs map[string]string) {
			t.Helper()
			got, body := ask(h, "/readyz")
			var r report
			if err := json.Unmarshal([]byte(body), &r); err != nil {
				t.Fatal(err)
			}
			if got != code || r.Ready != ready || !r.Since.Equal(began.Add(since)) {
				t.Errorf("%d %s, want %d, ready %v, %v after the start", got, body, code, ready, since)
			}
			for name, s := range r.Parts {
				if s.Error != errs[name] || s.Ready != (errs[name] == "") {
					t.Errorf("%s: %+v, want %q", name, s, errs[name])
				}
			}
		}
		want(503, false, 0, map[string]string{"broker": "starting", "etcd": "starting"})
		<-time.After(time.Second)
		b.Set("broker", nil)
		want(503, false, 0, map[string]string{"etcd": "starting"})
		<-time.After(time.Second)
		b.Set("etcd", nil)
		want(200, true, 2*time.Second, nil)
		<-time.After(time.Second)
		b.Set("etcd", errors.New("gone"))
		<-time.After(time.Second)
		b.Set("etcd", errors.New("still gone")) // does not change the time of the first error
		want(503, false, 3*time.Second, map[string]string{"etcd": "still gone"})
		if since := b.report().Parts["etcd"].Since; !since.Equal(began.Add(3 * time.Second)) {
			t.Errorf("etcd is not ready since %v after the start, want 3s", since.Sub(began))
		}
		for path, want := range map[string]string{"/stats": "200 {\n  \"orders_new_order_ok\": 3\n}\n", "/healthz": "200 ok\n", "/": "404 404 page not found\n"} {
			if code, body := ask(h, path); fmt.Sprint(code, " ", body) != want {
				t.Errorf("%s: %d %s, want %s", path, code, body, want)
			}
		}
	})
}

// A probe notices within two seconds that a server has become silent, or answers again.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewStatus("etcd")
		var silent atomic.Bool
		stop := b.Probe("etcd", func(ctx context.Context) error {
			if silent.Load() {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		for _, s := range []bool{false, true, false} {
			silent.Store(s)
			<-time.After(2 * time.Second)
			synctest.Wait()
			if b.report().Ready == s {
				t.Errorf("silent %v, ready %v", s, b.report().Ready)
			}
		}
		stop()
	})
}

func TestServe(t *testing.T) {
	var log strings.Builder
	began := make(chan struct{})
	stop, err := Serve("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(began)
			<-r.Context().Done()
		}
		w.WriteHeader(http.StatusTeapot)
	}), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	_, addr, _ := strings.Cut(strings.TrimSpace(log.String()), " at=")
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("answered with %s", resp.Status)
	}
	slow := make(chan error, 1)
	go func() {
		_, err := client.Get("http://" + addr + "/slow")
		slow <- err
	}()
	<-began
	asked := time.Now()
	stop()
	if err, took := <-slow, time.Since(asked); err == nil || took > 4*time.Second {
		t.Errorf("a slow answer ended %v after the stop: %v", took, err)
	}
	if _, err := client.Get("http://" + addr); err == nil {
		t.Error("it answers after it was stopped")
	}
	if _, err := Serve("192.0.2.1:1", http.NotFoundHandler(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "HEALTH_ADDR") {
		t.Errorf("for an address of another machine the error is %v", err)
	}
}
