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
	"strconv"
	"unicode/utf16"
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
	if !json.Valid(body) {
		return Event{}, fmt.Errorf("body is not a JSON event: %w", json.Unmarshal(body, &json.RawMessage{}))
	}
	object := gjson.ParseBytes(body)
	if !object.IsObject() {
		return Event{}, errors.New("body is not a JSON event: not an object")
	}
	if loneSurrogate(body) {
		return Event{}, errors.New("body has a lone surrogate escape, which is not Unicode text")
	}
	var typ, id field
	object.ForEach(func(name, value gjson.Result) bool {
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
	for {
		i := bytes.IndexByte(body, '\\')
		if i < 0 {
			return false
		}
		body = body[i:]
		switch unit := escaped(body); {
		case body[1] != 'u':
			body = body[len(`\n`):]
		case !utf16.IsSurrogate(unit):
			body = body[len(`\u0000`):]
		case utf16.DecodeRune(unit, escaped(body[len(`\u0000`):])) == utf8.RuneError:
			return true
		default:
			body = body[len(`\ud800\udc00`):]
		}
	}
}

// escaped returns the UTF-16 unit of the escape \uXXXX that valid JSON begins with, or 0.
func escaped(body []byte) rune {
	if len(body) < len(`\u0000`) || body[0] != '\\' || body[1] != 'u' {
		return 0
	}
	unit, _ := strconv.ParseUint(string(body[2:6]), 16, 16)
	return rune(unit)
}
