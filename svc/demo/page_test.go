package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/streamdal/gophercon2021/svc/test/harness"
)

// browser shows the page. If no browser is installed, ctx is nil and nothing is checked.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// openBrowser opens the page in a headless browser, if one is installed.
func openBrowser(t *testing.T, url string) browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if found, err := exec.LookPath(name); err == nil && path == "" {
			path = found
		}
	}
	if path == "" {
		t.Log("THE PAGE IS NOT TESTED: no chromium and no google-chrome in PATH (Debian: apt-get install chromium)")
		return browser{t: t}
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1440, 900),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancelAllocator)
	ctx, closeBrowser := chromedp.NewContext(ctx)
	t.Cleanup(closeBrowser)
	b := browser{t, ctx}
	b.do(chromedp.Navigate(url), chromedp.WaitVisible("main h1"))
	return b
}

func (b browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	must(b.t, chromedp.Do(b.ctx, steps...))
}

// value evaluates a script in the page.
func value[T any](b browser, script string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script))
	must(b.t, err)
	return v
}

// saves saves a screenshot of the page to the file that an environment variable names,
// a few seconds after a text has appeared on the page.
func (b browser) saves(variable, text string) {
	b.t.Helper()
	path := os.Getenv(variable)
	if b.ctx == nil || path == "" {
		return
	}
	b.do(chromedp.Poll[chromedp.Void](fmt.Sprintf("document.body.innerText.includes(%q)", text)),
		chromedp.Sleep(4500*time.Millisecond))
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	must(b.t, err)
	must(b.t, os.WriteFile(path, picture, 0o644))
}

// wants checks that the page shows these numbers and a chart, and then counts events
// that are published by hand.
func (b browser) wants(amqpURL string, ends [len(roles)]serviceView) {
	b.t.Helper()
	if b.ctx == nil {
		return
	}
	for round := range 3 {
		for _, service := range ends {
			b.wantsNumber(service.Name, "ok", service.OK)
			b.wantsNumber(service.Name, "skipped", service.Skipped)
			b.wantsNumber(service.Name, "queued", 0)
		}
		if round == 2 {
			break
		}
		hand := harness.Publisher{URL: amqpURL}
		must(b.t, hand.Publish(b.ctx, harness.Message(harness.NewOrder("by-hand"))))
		hand.Close()
		for i := range ends {
			if round == 0 {
				ends[i].OK++
			} else {
				ends[i].Skipped++
			}
		}
	}
	if value[int](b, `document.querySelectorAll(".light svg path").length`) == 0 {
		b.t.Error("there is no chart on the page")
	}
	if n := value[int](b, `document.querySelectorAll("li.passed").length`); n != len(scenes) {
		b.t.Errorf("%d scenes have passed on the page, want %d", n, len(scenes))
	}
}

func (b browser) wantsNumber(role, class string, want int) {
	b.t.Helper()
	number := fmt.Sprintf("document.querySelector('#%s dd.%s').innerText", role, class)
	reached := chromedp.Poll[chromedp.Void](fmt.Sprintf("%s === '%d'", number, want), chromedp.WithPollingTimeout(maxStep))
	if err := chromedp.Do(b.ctx, reached); err != nil {
		b.t.Errorf("the page shows %s %s %q, want %d", role, class, value[string](b, number), want)
	}
}
