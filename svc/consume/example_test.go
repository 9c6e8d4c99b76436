package consume_test

import (
	"context"
	"fmt"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
)

// This example runs the pipeline of one role, without a broker and without etcd, as a test of
// handlers does. The command svc shows how it is connected to both.
func Example() {
	processOrder := func(ctx context.Context, job consume.Job) error {
		fmt.Printf("%s, attempt %d\n", job.Key(), job.Attempt)
		return nil
	}
	show(context.Background(), processOrder, consumetest.Message{Body: `{"type":"new_order","id":"123"}`})
	show(context.Background(), processOrder, consumetest.Message{Body: `{"type":"login"}`})
	show(context.Background(), processOrder, consumetest.Message{Body: `not an event`})
	// Output:
	// orders/123, attempt 1
	// count new_order_ok
	// acknowledged
	// count ignored
	// acknowledged
	// dead letter: malformed
	// count malformed
	// acknowledged
}

// show handles a message of orders, and prints what the pipeline does with it.
func show(ctx context.Context, processOrder consume.Handler, m consumetest.Message) {
	handlers := map[string]consume.Handler{"new_order": processOrder}
	for _, line := range consumetest.Run(ctx, "orders", handlers, m) {
		fmt.Println(line)
	}
}
