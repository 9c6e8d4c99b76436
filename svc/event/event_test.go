package event_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/streamdal/gophercon2021/svc/event"
)

var long = strings.Repeat("x", event.MaxID)

var bodies = map[string]struct {
	body     string
	typ, id  string
	contains string // of the error; empty: none
}{
	"plain":                 {body: `{"type":"new_order","id":"123"}`, typ: "new_order", id: "123"},
	"other fields":          {body: `{"a":[1,{"id":"no"}],"id":"1","b":{"type":2},"type":"t","c":null}`, typ: "t", id: "1"},
	"white space":           {body: " \n{ \"type\" : \"t\",\t\"id\" : \"1\" }\r\n", typ: "t", id: "1"},
	"empty type":            {body: `{"type":"","id":"1"}`, typ: "", id: "1"},
	"longest id":            {body: `{"type":"t","id":"` + long + `"}`, typ: "t", id: long},
	"slashes":               {body: `{"type":"t","id":"../a//b/"}`, typ: "t", id: "../a//b/"},
	"newline and NUL":       {body: `{"type":"t","id":"a\n\u0000b"}`, typ: "t", id: "a\n\x00b"},
	"percent":               {body: `{"type":"t","id":"%2f%"}`, typ: "t", id: "%2f%"},
	"script":                {body: `{"type":"t","id":"注文-१२३"}`, typ: "t", id: "注文-१२३"},
	"escaped name":          {body: `{"type":"t","\u0069d":"1"}`, typ: "t", id: "1"},
	"surrogate pair":        {body: `{"type":"t","id":"\ud83d\ude00"}`, typ: "t", id: "😀"},
	"escaped backslash u":   {body: `{"type":"t","id":"\\ud800"}`, typ: "t", id: `\ud800`},
	"replacement character": {body: "{\"type\":\"t\",\"id\":\"\uFFFD\"}", typ: "t", id: "\uFFFD"},
	"repeated other name":   {body: `{"type":"t","a":1,"a":2,"id":"1"}`, typ: "t", id: "1"},
	"large":                 {body: `{"type":"t","id":"1","x":"` + strings.Repeat("y", 8<<20) + `"}`, typ: "t", id: "1"},
	"names are exact":       {body: `{"Type":"no","type":"t","ID":"no","id":"1"}`, typ: "t", id: "1"},

	"empty":               {body: ``, contains: "not a JSON event"},
	"truncated":           {body: `{"type":"t","id":"1"`, contains: "not a JSON event"},
	"not JSON":            {body: `new_order 1`, contains: "not a JSON event"},
	"array":               {body: `[{"type":"t","id":"1"}]`, contains: "not an object"},
	"string":              {body: `"type"`, contains: "not an object"},
	"null":                {body: `null`, contains: "not an object"},
	"trailing data":       {body: `{"type":"t","id":"1"}{}`, contains: "not a JSON event"},
	"trailing comma":      {body: `{"type":"t","id":"1",}`, contains: "not a JSON event"},
	"no type":             {body: `{"id":"1"}`, contains: `"type" is missing`},
	"only other case":     {body: `{"Type":"t","id":"1"}`, contains: `"type" is missing`},
	"type of number":      {body: `{"type":1,"id":"1"}`, contains: `"type" is not a string`},
	"id of number":        {body: `{"type":"t","id":1}`, contains: `"id" is not a string`},
	"id of null":          {body: `{"type":"t","id":null}`, contains: `"id" is not a string`},
	"empty id":            {body: `{"type":"t","id":""}`, contains: `"id" is empty`},
	"id too long":         {body: `{"type":"t","id":"` + long + `x"}`, contains: `513 bytes`},
	"id twice":            {body: `{"type":"t","id":"1","id":"1"}`, contains: `"id" is given twice`},
	"type twice":          {body: `{"type":"t","id":"1","type":"t"}`, contains: `"type" is given twice`},
	"id twice, escaped":   {body: `{"type":"t","id":"1","\u0069d":"1"}`, contains: `"id" is given twice`},
	"invalid UTF-8":       {body: "{\"type\":\"t\",\"id\":\"\xff\"}", contains: "UTF-8"},
	"lone high surrogate": {body: `{"type":"t","id":"\ud800"}`, contains: "surrogate"},
	"lone low surrogate":  {body: `{"type":"t","id":"\uDC00"}`, contains: "surrogate"},
	"two high surrogates": {body: `{"type":"t","id":"\ud800\ud800\udc00"}`, contains: "surrogate"},
	"surrogate elsewhere": {body: `{"type":"t","id":"1","x":"a\\\udfff"}`, contains: "surrogate"},
	"deep":                {body: strings.Repeat("[", 200_000), contains: "not a JSON event"},
	"deep field":          {body: `{"type":"t","id":"1","x":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`, contains: "depth"},
}

func TestParse(t *testing.T) {
	for name, tt := range bodies {
		t.Run(name, func(t *testing.T) {
			e, err := event.Parse([]byte(tt.body))
			if tt.contains != "" {
				if err == nil || !strings.Contains(err.Error(), tt.contains) {
					t.Fatalf("error is %v, want one about %q", err, tt.contains)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.Type != tt.typ || e.ID != tt.id || string(e.Body) != tt.body {
				t.Errorf("got type %q id %q, want %q %q", e.Type, e.ID, tt.typ, tt.id)
			}
		})
	}
}

func TestParseWithoutID(t *testing.T) {
	e, err := event.Parse([]byte(`{"type":"new_order"}`))
	if !errors.Is(err, event.ErrNoID) || e.Type != "new_order" || string(e.Body) != `{"type":"new_order"}` {
		t.Errorf("got %+v, %v; want the event and ErrNoID", e, err)
	}
}

// FuzzParse compares Parse with a second reader of the same bytes: encoding/json must
// find the same type and id in every body that Parse accepts.
func FuzzParse(f *testing.F) {
	for _, tt := range bodies {
		if len(tt.body) < 1<<20 {
			f.Add([]byte(tt.body))
		}
	}
	f.Add([]byte(`{"type":"t"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := event.Parse(body)
		if err != nil && !errors.Is(err, event.ErrNoID) {
			return
		}
		var all map[string]any
		if jsonErr := json.Unmarshal(body, &all); jsonErr != nil {
			t.Fatalf("Parse accepted a body that encoding/json refuses: %v", jsonErr)
		}
		if all["type"] != e.Type {
			t.Errorf("type %q, encoding/json says %v", e.Type, all["type"])
		}
		if id, has := all["id"]; has != (err == nil) || has && id != e.ID {
			t.Errorf("id %q (%v), encoding/json says %v", e.ID, err, id)
		}
		if len(e.ID) > event.MaxID || !utf8.ValidString(e.ID) {
			t.Errorf("id %q is out of bounds", e.ID)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	body := []byte(`{"type":"new_order","id":"6f1c0de2-5b0a-4c6e-9d0c-2f6c7a1d9e11","user_id":"42","items":[{"sku":"a","n":1}]}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}
