package e2e

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A standard error that is not read holds up the events but not the end of the process, and
// none is lost.
func TestStandardErrorIsNotRead(t *testing.T) {
	const events, blocked = 5000, 200 // 200 lines of that length are twice what a pipe holds
	e := newEnv(t)
	e.topology("orders")
	e.publishBodies(orders(strings.Repeat("x", 480), events)...)
	reader, writer := newPipe(t)
	s := e.startLogging("orders", writer, "ENABLE_ETCD=true", "CONCURRENCY=500", "SHUTDOWN_TIMEOUT="+shutdown.String())
	eventually(t, "more events done than the pipe holds", func() error {
		if e.statsd.Counts()["orders_new_order_ok"] < blocked {
			return errNotYet
		}
		return nil
	})
	asked := time.Now()
	s.signal(syscall.SIGTERM)
	s.wantExit(1)
	if took := time.Since(asked); took > shutdown+3*time.Second/2 {
		t.Errorf("the process ended after %v", took)
	}
	writer.Close()
	if text, _ := io.ReadAll(reader); strings.Count(string(text), "msg=processed") >= blocked {
		t.Errorf("the pipe has held %d lines", strings.Count(string(text), "msg=processed"))
	}
	next := e.start("orders", "ENABLE_ETCD=true")
	eventually(t, "everything done", func() error { return e.allDone("orders", events) })
	next.stop()
}

// A standard error that is closed ends nothing.
func TestStandardErrorIsClosed(t *testing.T) {
	const events = 100
	e := newEnv(t)
	e.topology("orders")
	reader, writer := newPipe(t)
	s := e.startLogging("orders", writer, "ENABLE_ETCD=true")
	writer.Close()
	reader.Close()
	e.publishBodies(orders("c", events)...)
	e.waitCounts(map[string]int64{"orders_new_order_ok": events})
	s.stop()
	e.wantAllDone("orders", events) // and no id is claimed
}

func newPipe(t *testing.T) (reader, writer *os.File) {
	reader, writer, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { reader.Close(); writer.Close() })
	return reader, writer
}
