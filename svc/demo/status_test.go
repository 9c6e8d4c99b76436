package main

import (
	"sync"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// The page may read a view while the scene goes on, and the view does not change.
func TestCurrentView(t *testing.T) {
	statsd, err := stack.StartStatsd()
	must(t, err)
	defer statsd.Close()
	status := newStatus(statsd)
	status.begin(1)
	v := status.current()
	var playing sync.WaitGroup
	playing.Go(func() {
		for range 100 {
			status.finish(1, true)
		}
	})
	for range 100 {
		status.current()
	}
	playing.Wait()
	if got, want := v.Verdicts[0]+" "+status.current().Verdicts[0], "now passed"; got != want {
		t.Errorf("the verdicts are %q, want %q", got, want)
	}
}
