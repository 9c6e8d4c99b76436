// Package event parses message bodies. An event is a JSON object with a type and
// an id; its other fields belong to the handlers:
//
//	{"type": "new_order", "id": "123", "total": 42}
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// MaxID is the longest id that is accepted, in bytes of UTF-8.
const MaxID = 512

// Event is a parsed message body.
type Event struct {
	Type string
	ID   string // 1 to MaxID bytes; empty only if the body has none
	Body []byte // as published, not copied
}

// ErrNoID is returned together with the Event: a service that does not check ids
// can process it.
var ErrNoID = errors.New(`"id" is missing: nothing could tell this event from another`)

// Parse parses body. An error means that the body is malformed; only with ErrNoID
// is the Event valid.
//
// Parse is stricter than encoding/json where two readers of a body could see two
// different ids: names match exactly, "type" and "id" may be given only once, and
// text that is not Unicode is an error instead of being replaced.
func Parse(body []byte) (Event, error) {
	if !utf8.Valid(body) {
		return Event{}, errors.New("body is not valid UTF-8")
	}
	if err := valid(body); err != nil {
		return Event{}, fmt.Errorf("body is not a JSON event: %w", err)
	}
	if loneSurrogate(body) {
		return Event{}, errors.New("body has a lone surrogate escape, which is not Unicode text")
	}
	var typ, id field
	gjson.ParseBytes(body).ForEach(func(name, value gjson.Result) bool {
		switch name.Str {
		case "type":
			typ.add(value)
		case "id":
			id.add(value)
		}
		return true
	})
	if err := typ.check("type"); err != nil {
		return Event{}, err
	}
	e := Event{Type: typ.value.Str, ID: id.value.Str, Body: body}
	switch err := id.check("id"); {
	case id.count == 0:
		return e, ErrNoID
	case err != nil:
		return Event{}, err
	case len(e.ID) == 0:
		return Event{}, errors.New(`"id" is empty`)
	case len(e.ID) > MaxID:
		return Event{}, fmt.Errorf(`"id" has %d bytes, at most %d are allowed`, len(e.ID), MaxID)
	}
	return e, nil
}

// valid reports what gjson does not check: the syntax, and that body is an object.
func valid(body []byte) error {
	if !json.Valid(body) {
		return json.Unmarshal(body, &json.RawMessage{}) // for its error
	}
	if bytes.TrimLeft(body, " \t\r\n")[0] != '{' {
		return errors.New("not an object")
	}
	return nil
}

// field is a member of an object that may be given once and must be a string.
type field struct {
	value gjson.Result
	count int
}

func (f *field) add(value gjson.Result) {
	f.value = value
	f.count++
}

func (f *field) check(name string) error {
	switch {
	case f.count == 0:
		return fmt.Errorf("%q is missing", name)
	case f.count > 1:
		return fmt.Errorf("%q is given twice", name)
	case f.value.Type != gjson.String:
		return fmt.Errorf("%q is not a string", name)
	}
	return nil
}

// loneSurrogate reports whether valid JSON contains an escaped half of a UTF-16
// pair. encoding/json reads each such half as U+FFFD, which would make two
// different ids equal.
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
