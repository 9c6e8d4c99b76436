package consume_test

import (
	"context"
	"fmt"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
)

// A handler finds the headers of the message in its job, such as the trace that the event
// belongs to. A publisher can send any type: check it.
func ExampleJob_headers() {
	processOrder := func(ctx context.Context, job consume.Job) error {
		if parent, ok := job.Headers["traceparent"].(string); ok {
			fmt.Println("continue the trace", parent)
		}
		return nil
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	show(context.Background(), processOrder,
		consumetest.Message{Body: `{"type":"new_order","id":"1"}`, Headers: map[string]any{"traceparent": parent}})
	// Output:
	// continue the trace 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
	// count new_order_ok
	// acknowledged
}
