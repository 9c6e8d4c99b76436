package webhook

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// frame returns an HTTP/2 frame with a payload on a stream.
func frame(kind byte, stream uint32, payload ...byte) []byte {
	head := []byte{0, 0, byte(len(payload)), kind, 0}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// Kinds of frames, and an error code.
const (
	headersFrame, resetFrame, settingsFrame, goAwayFrame = 1, 3, 4, 7
	refusedStream                                        = 7
)

// serveHTTP2 answers the headers of each request with the bytes that answer returns, and
// nothing else, not even pings, until the connection ends.
func serveHTTP2(conn net.Conn, answer func(stream uint32) []byte) {
	defer conn.Close()
	answers := make(chan []byte, 100) // a net.Pipe has no buffer, so reading must not wait for writing
	defer close(answers)
	go func() {
		for a := range answers {
			conn.Write(a)
		}
	}()
	answers <- frame(settingsFrame, 0)
	io.ReadFull(conn, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		io.CopyN(io.Discard, conn, int64(head[0])<<16|int64(head[1])<<8|int64(head[2]))
		if head[3] == headersFrame {
			answers <- answer(binary.BigEndian.Uint32(head[5:]))
		}
	}
}

// A request that HTTP/2 loses in one of its own ways is an outage. A connection that is
// silent is pinged.
func TestHTTP2(t *testing.T) {
	tests := map[string]struct {
		answer func(stream uint32) []byte
		took   time.Duration
	}{
		"refused stream": {func(stream uint32) []byte { return frame(resetFrame, stream, 0, 0, 0, refusedStream) }, 0},
		"GOAWAY":         {func(uint32) []byte { return frame(goAwayFrame, 0, 0, 0, 0, 0, 0, 0, 0, 0) }, 0},
		"silence":        {func(uint32) []byte { return nil }, 2 * pingTimeout},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New("http://127.0.0.1", "", 1)
				p.transport.Protocols = new(http.Protocols)
				p.transport.Protocols.SetUnencryptedHTTP2(true)
				p.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					go serveHTTP2(server, tt.answer)
					return client, nil
				}
				if what, took, _, err := verdict(t, p.Handle); what != isOutage || took != tt.took {
					t.Errorf("%s after %v (%v), want %s after %v", what, took, err, isOutage, tt.took)
				}
				p.Close()
			})
		})
	}
}
