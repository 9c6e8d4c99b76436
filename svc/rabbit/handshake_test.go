package rabbit

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/streadway/amqp"
)

// frame returns a method frame on channel 0.
func frame(class, method uint16, args string) string {
	payload := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, class), method)
	payload = append(payload, args...)
	return string(binary.BigEndian.AppendUint32([]byte{1, 0, 0}, uint32(len(payload)))) + string(payload) + "\xce"
}

func closeFrame(code uint16, text string) string {
	return frame(10, 50, string(binary.BigEndian.AppendUint16(nil, code))+string(rune(len(text)))+text+"\x00\x00\x00\x00")
}

// readerConn is a connection that can only be read.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(b []byte) (int, error)  { return c.Reader.Read(b) }
func (readerConn) SetDeadline(t time.Time) error { return nil }

// The error of a failed handshake contains the broker's own reason, in whatever pieces
// its bytes arrive.
func TestHandshakeReason(t *testing.T) {
	start := frame(10, 10, "\x00\x09")
	end := func(err error) io.Reader { return iotest.ErrReader(err) }
	tests := map[string]struct {
		sent string
		end  io.Reader
		want string
	}{
		"refused":                {start + closeFrame(530, "NOT_ALLOWED - vhost x not found"), end(io.EOF), "vhost x not found"},
		"refused at once":        {closeFrame(541, "INTERNAL_ERROR - is down"), end(io.EOF), "is down"},
		"closed":                 {start, end(io.EOF), errNoReason.Error()},
		"silent":                 {"", end(os.ErrDeadlineExceeded), "did not answer within 5s"},
		"silent after start":     {start, end(os.ErrDeadlineExceeded), errSlowLogin.Error()},
		"reset":                  {start, end(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), errNoReason.Error()},
		"unreachable":            {start, end(syscall.EHOSTUNREACH), "no route to host"},
		"a close without text":   {start + frame(10, 50, "\x02"), end(io.EOF), errNoReason.Error()},
		"closed after it":        {start + frame(10, 41, "") + closeFrame(320, "CONNECTION_FORCED"), end(io.EOF), "library"},
		"a frame without end":    {start + "\x01\x00\x00\xff\xff\xff\xff" + strings.Repeat("x", maxHandshake), end(io.EOF), "library"},
		"HTTP, which is no AMQP": {"HTTP/1.1 400 Bad Request\r\n\r\n", end(io.EOF), errNoReason.Error()},
	}
	for name, tt := range tests {
		for pieces, split := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "by bytes": iotest.OneByteReader,
		} {
			t.Run(name+"/"+pieces, func(t *testing.T) {
				c := &brokerConn{Conn: readerConn{Reader: split(io.MultiReader(strings.NewReader(tt.sent), tt.end))}}
				got, _ := io.ReadAll(struct{ io.Reader }{c})
				if string(got) != tt.sent {
					t.Errorf("the library reads %q", got)
				}
				if err := c.explain(errors.New("library")); !strings.Contains(err.Error(), tt.want) {
					t.Errorf("the reason is %q, want %q", err, tt.want)
				}
			})
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(frame(10, 10, "\x00\x09") + closeFrame(403, "ACCESS_REFUSED")))
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &brokerConn{Conn: readerConn{Reader: iotest.HalfReader(strings.NewReader(string(sent)))}}
		if got, err := io.ReadAll(struct{ io.Reader }{c}); err != nil || string(got) != string(sent) {
			t.Errorf("%q became %q (%v)", sent, got, err)
		}
		if len(c.received) > maxHandshake {
			t.Errorf("%d bytes are kept", len(c.received))
		}
		if c.explain(amqp.ErrVhost) == nil {
			t.Error("explain returns no reason")
		}
	})
}
