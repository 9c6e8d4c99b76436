package consume_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/streamdal/gophercon2021/svc/consume"
)

// Each attempt has the headers of the message.
func TestHeaders(t *testing.T) {
	for name, headers := range map[string]map[string]any{"none": nil, "some": {"traceparent": "00-1-2-01", "n": int32(7)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []map[string]any
				p := newProcess(t, func(_ context.Context, job consume.Job) error {
					if got = append(got, job.Headers); job.Attempt == 1 {
						return errors.New("boom")
					}
					return nil
				})
				d := p.order("1")
				d.headers = headers
				p.run(d)
				if diff := cmp.Diff([]map[string]any{headers, headers}, got); diff != "" {
					t.Errorf("headers (-want +got):\n%s", diff)
				}
			})
		})
	}
}
