package stack_test

import (
	"maps"
	"net"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

func TestStatsd(t *testing.T) {
	ctx := deadline(t)
	s, err := stack.StartStatsd()
	check(t, err)
	closeAtEnd(t, s)
	conn, err := net.Dial("udp", s.Addr())
	check(t, err)
	defer conn.Close()

	for _, packet := range []string{
		"ok:0|c",
		"ok:2|c\nfailed:1|c\n",
		"ok:1|c|@0.1", // one in ten was sent
		"no metric\n:1|c\nok:x|c\nok:1\nok:1|c|@0\n" + "depth:7|g\ntook:1.5|ms\nok:1|c",
		"depth:5|g\nlast:0|c",
	} {
		_, err := conn.Write([]byte(packet))
		check(t, err)
	}
	check(t, s.Wait(ctx, func(counts map[string]int64) bool { _, ok := counts["last"]; return ok }))
	want := map[string]int64{"ok": 13, "failed": 1, "last": 0}
	if got := s.Counts(); !maps.Equal(got, want) {
		t.Errorf("sums are %v, want %v", got, want)
	}
	if n := s.Count("ok"); n != 13 {
		t.Errorf("ok is %d", n)
	}
	if depth, ok := s.Last("depth"); depth != 5 || !ok {
		t.Errorf("depth is %v, %v", depth, ok)
	}
	if took, ok := s.Last("took"); took != 1.5 || !ok {
		t.Errorf("took is %v, %v", took, ok)
	}
}
