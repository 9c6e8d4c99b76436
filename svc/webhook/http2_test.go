package webhook

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
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

// http2Server dials a server that answers the headers of each request with the bytes
// that answer returns, and nothing else, not even pings. It ends with the connection.
func http2Server(certificate tls.Certificate, answer func(stream uint32) []byte) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			conn := tls.Server(server, &tls.Config{
				Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"},
				SessionTicketsDisabled: true, // nothing reads the ticket before the client has written
			})
			if _, err := io.ReadFull(conn, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
				return
			}
			answers := make(chan []byte, 100) // a net.Pipe has no buffer, so reading must not wait for writing
			defer close(answers)
			go func() {
				for a := range answers {
					conn.Write(a)
				}
			}()
			answers <- frame(settingsFrame, 0)
			for head := make([]byte, 9); ; {
				if _, err := io.ReadFull(conn, head); err != nil {
					return
				}
				size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
				if _, err := io.CopyN(io.Discard, conn, size); err != nil {
					return
				}
				if head[3] == headersFrame {
					answers <- answer(binary.BigEndian.Uint32(head[5:]))
				}
			}
		}()
		return client, nil
	}
}

// A request that HTTP/2 loses in one of its own ways is an outage. A connection that is
// silent is pinged.
func TestHTTP2(t *testing.T) {
	template := httptest.NewUnstartedServer(nil)
	template.StartTLS()
	template.Close()
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
				p := New("https://127.0.0.1", 1, slog.New(slog.DiscardHandler))
				p.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				p.transport.DialContext = http2Server(template.TLS.Certificates[0], tt.answer)
				if what, took, _, err := verdict(t, p.Handle); what != isOutage || took > tt.took {
					t.Errorf("%s after %v (%v), want %s after %v", what, took, err, isOutage, tt.took)
				}
				p.Close()
			})
		})
	}
}
