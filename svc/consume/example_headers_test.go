package consume_test

import (
	"context"
	"fmt"

	"github.com/streamdal/gophercon2021/svc/consume"
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
	runExample(context.Background(), processOrder,
		tracedMessage{`{"type":"new_order","id":"1"}`, map[string]any{"traceparent": parent}})
	// Output:
	// continue the trace 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
	// count new_order_ok
	// acknowledged
}

// tracedMessage is a message with headers.
type tracedMessage struct {
	message
	headers map[string]any
}

func (m tracedMessage) Headers() map[string]any { return m.headers }
