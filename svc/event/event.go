// Package event reads the one thing that every role agrees on: an event is a
// JSON object with a type, which says what happened, and an id, which says
// whether it has happened before.
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// MaxID is the longest id that is accepted, in bytes of UTF-8.
const MaxID = 512

// Event is a parsed message body.
type Event struct {
	Type string
	ID   string // 1 to MaxID bytes; empty only if the body has none
	Body []byte // as published, not copied
}

// ErrNoID says that a body is an event in every other way. Whoever keeps no
// record of ids can process it all the same: Parse returns the Event with it.
var ErrNoID = errors.New(`"id" is missing: nothing could tell this event from another`)

// Parse reads body as an event. Every error means that the body is malformed
// and will be for ever; ErrNoID alone comes with a usable Event.
//
// It is stricter than encoding/json where two readers might see two different
// ids in one body: names are exact, "type" and "id" are given once, and text
// that is not Unicode is refused instead of being replaced.
func Parse(body []byte) (Event, error) {
	if !utf8.Valid(body) {
		return Event{}, errors.New("body is not valid UTF-8")
	}
	var f fields
	if err := json.Unmarshal(body, &f); err != nil {
		return Event{}, fmt.Errorf("body is not a JSON event: %w", err)
	}
	switch {
	case loneSurrogate(body):
		return Event{}, errors.New("body has a lone surrogate escape, which is not Unicode text")
	case f.typ == nil:
		return Event{}, errors.New(`"type" is missing`)
	case f.id == nil:
		return Event{Type: *f.typ, Body: body}, ErrNoID
	case len(*f.id) == 0:
		return Event{}, errors.New(`"id" is empty`)
	case len(*f.id) > MaxID:
		return Event{}, fmt.Errorf(`"id" has %d bytes, at most %d are allowed`, len(*f.id), MaxID)
	}
	return Event{Type: *f.typ, ID: *f.id, Body: body}, nil
}

// fields picks type and id out of a JSON object and checks the rest only for
// being JSON.
type fields struct{ typ, id *string }

// UnmarshalJSON gets one complete, valid JSON value: json.Unmarshal has
// checked that before it calls.
func (f *fields) UnmarshalJSON(value []byte) error {
	dec := json.NewDecoder(bytes.NewReader(value))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return errors.New("not an object")
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		switch name {
		case "type":
			err = readOnce(dec, "type", &f.typ)
		case "id":
			err = readOnce(dec, "id", &f.id)
		default:
			var skip json.RawMessage
			err = dec.Decode(&skip)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readOnce(dec *json.Decoder, name string, to **string) error {
	if *to != nil {
		return fmt.Errorf("%q is given twice", name)
	}
	var s any
	if err := dec.Decode(&s); err != nil {
		return err
	}
	text, ok := s.(string)
	if !ok {
		return fmt.Errorf("%q is not a string", name)
	}
	*to = &text
	return nil
}

// loneSurrogate reports whether valid JSON has half of a UTF-16 pair in an
// escape. encoding/json reads every such half as U+FFFD, so that two ids that
// differ would become one.
func loneSurrogate(body []byte) bool {
	for i := bytes.IndexByte(body, '\\'); i >= 0 && i < len(body); {
		switch {
		case body[i] != '\\':
			next := bytes.IndexByte(body[i:], '\\')
			if next < 0 {
				return false
			}
			i += next
		case body[i+1] != 'u':
			i += len(`\n`)
		case !isSurrogate(body[i:]):
			i += len(`\u0000`)
		case isHigh(body[i:]) && isLow(body[i+len(`\u0000`):]):
			i += len(`\ud800\udc00`)
		default:
			return true
		}
	}
	return false
}

// The escapes of surrogates are \ud800 to \udfff, the high halves ending
// with \udbff.
func isSurrogate(escape []byte) bool { return isHigh(escape) || isLow(escape) }
func isHigh(escape []byte) bool      { return inRange(escape, "89abAB") }
func isLow(escape []byte) bool       { return inRange(escape, "cdefCDEF") }

func inRange(escape []byte, third string) bool {
	return len(escape) >= len(`\u0000`) && escape[0] == '\\' && escape[1] == 'u' &&
		(escape[2] == 'd' || escape[2] == 'D') && bytes.IndexByte([]byte(third), escape[3]) >= 0
}
