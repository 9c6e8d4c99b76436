package consume_test

import (
	"strings"
	"testing"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/event"
)

func TestKey(t *testing.T) {
	for id, want := range map[string]string{
		"123":                                  "123",
		"order-1_A.b~c":                        "order-1_A.b~c",
		`!"#$&'()*+,-./:;<=>?@[\]^_` + "`{|}~": `!"#$&'()*+,-./:;<=>?@[\]^_` + "`{|}~",
		"a b":                                  "a%20b",
		" a ":                                  "%20a%20",
		"%":                                    "%25",
		"%20":                                  "%2520",
		"a/../b":                               "a/../b",
		"\x00":                                 "%00",
		"a\r\nX-Evil: 1":                       "a%0D%0AX-Evil:%201",
		"a\tb":                                 "a%09b",
		"\x7f":                                 "%7F",
		"é":                                    "%C3%A9",
		"注文":                                   "%E6%B3%A8%E6%96%87",
		"😀":                                    "%F0%9F%98%80",
		"\u2028":                               "%E2%80%A8",
		strings.Repeat("x", 512):               strings.Repeat("x", 512),
		strings.Repeat("é", 256):               strings.Repeat("%C3%A9", 256),
	} {
		job := consume.Job{Role: "orders", Event: event.Event{ID: id}}
		if got := job.Key(); got != "orders/"+want {
			t.Errorf("the key of %.20q is %q, want %q", id, got, "orders/"+want)
		}
	}
}
