package rabbit

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/streadway/amqp"
)

// addedHeaders are the headers that deadLetter adds. A dead letter keeps them,
// however large the others are.
var addedHeaders = []string{"x-reason", "x-error", "x-attempts", "x-exchange", "x-routing-key", "x-failed-at"}

// droppedHeader counts the headers that did not fit.
const droppedHeader = "x-dropped-headers"

// trimHeaders leaves out headers, the largest first, until all properties fit
// into one frame of that many bytes (0: of any size). A message can arrive with
// headers that leave no space for ours; the broker would end the connection over
// such a frame, each time that it is sent.
func trimHeaders(msg amqp.Publishing, frame int) amqp.Publishing {
	over := headerFrame(msg) - frame
	if frame == 0 || over <= 0 {
		return msg
	}
	over += headerSize(droppedHeader, int32(0))
	names := slices.SortedFunc(maps.Keys(msg.Headers), func(a, b string) int {
		return cmp.Or(headerSize(b, msg.Headers[b])-headerSize(a, msg.Headers[a]), strings.Compare(a, b))
	})
	headers, n := maps.Clone(msg.Headers), int32(0)
	for _, name := range names {
		if over > 0 && !slices.Contains(addedHeaders, name) {
			over -= headerSize(name, headers[name])
			delete(headers, name)
			n++
		}
	}
	headers[droppedHeader] = n
	msg.Headers = headers
	return msg
}

// headerFrame is the size in bytes of the frame with a message's properties,
// its own header and end included.
func headerFrame(msg amqp.Publishing) int {
	size := 7 + 14 + 1 // type, channel, size; class, weight, body size, flags; end
	for _, s := range []string{
		msg.ContentType, msg.ContentEncoding, msg.CorrelationId, msg.ReplyTo, msg.Expiration, msg.MessageId, msg.Type, msg.UserId, msg.AppId,
	} {
		size += 1 + len(s)
	}
	return size + 1 + 1 + 8 + fieldSize(msg.Headers) // mode, priority, timestamp
}

// headerSize is the size of one header.
func headerSize(name string, value any) int { return 1 + len(name) + fieldSize(value) }

// fieldSize is how many bytes a value takes in AMQP, with its type.
func fieldSize(value any) int {
	const kind, length = 1, 4
	switch v := value.(type) {
	case nil:
		return kind
	case string:
		return kind + length + len(v)
	case []byte:
		return kind + length + len(v)
	case time.Time:
		return kind + 8
	case int:
		return kind + 4
	case []any:
		size := kind + length
		for _, v := range v {
			size += fieldSize(v)
		}
		return size
	case amqp.Table:
		size := kind + length
		for name, v := range v {
			size += headerSize(name, v)
		}
		return size
	}
	return kind + binary.Size(value) // of fixed size
}
