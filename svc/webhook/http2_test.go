package webhook

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// serveHTTP2 answers the headers of each request with answer, and nothing else, not even
// pings, until the connection ends.
func serveHTTP2(conn net.Conn, answer func(f *http2.Framer, stream uint32)) {
	defer conn.Close()
	f := http2.NewFramer(conn, conn)
	headers := make(chan uint32, 100) // a net.Pipe has no buffer, so reading must not wait for writing
	defer close(headers)
	go func() {
		f.WriteSettings()
		for stream := range headers {
			answer(f, stream)
		}
	}()
	io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if frame.Header().Type == http2.FrameHeaders {
			headers <- frame.Header().StreamID
		}
	}
}

// A request that HTTP/2 loses in one of its own ways is an outage. A connection that is
// silent is pinged.
func TestHTTP2(t *testing.T) {
	tests := map[string]struct {
		answer func(f *http2.Framer, stream uint32)
		took   time.Duration
	}{
		"refused stream": {func(f *http2.Framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) }, 0},
		"broken stream":  {func(f *http2.Framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeInternal) }, 0},
		"GOAWAY":         {func(f *http2.Framer, _ uint32) { f.WriteGoAway(0, http2.ErrCodeNo, nil) }, 0},
		"silence":        {func(*http2.Framer, uint32) {}, 2 * pingTimeout},
	}
	for name, tt := range tests {
		bubble(t, name, func(t *testing.T) {
			p := New("http://127.0.0.1", "", 1)
			defer p.Close()
			p.transport.Protocols = new(http.Protocols)
			p.transport.Protocols.SetUnencryptedHTTP2(true)
			p.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go serveHTTP2(server, tt.answer)
				return client, nil
			}
			if v := judge(t, p.Handle); v.what != isOutage || v.took != tt.took {
				t.Errorf("%s after %v (%v), want %s after %v", v.what, v.took, v.err, isOutage, tt.took)
			}
		})
	}
}
