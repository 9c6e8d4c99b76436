package consume_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
)

// An error is a failed attempt: the handler is called again, MAX_ATTEMPTS times in all. An
// error that another attempt would not change is marked as Permanent, and the event is
// dead-lettered at once.
func ExamplePermanent() {
	processOrder := func(ctx context.Context, job consume.Job) error {
		fmt.Printf("order %s, attempt %d\n", job.ID, job.Attempt)
		var order struct{ Customer string }
		if err := json.Unmarshal(job.Body, &order); err != nil {
			return consume.Permanent(err)
		}
		if order.Customer == "" {
			return consume.Permanent(errors.New("the order names no customer"))
		}
		if job.Attempt == 1 {
			return errors.New("the table is locked")
		}
		return nil
	}
	show(context.Background(), processOrder, consumetest.Message{Body: `{"type":"new_order","id":"1","customer":"ann"}`})
	show(context.Background(), processOrder, consumetest.Message{Body: `{"type":"new_order","id":"2"}`})
	// Output:
	// order 1, attempt 1
	// order 1, attempt 2
	// count new_order_ok
	// acknowledged
	// order 2, attempt 1
	// dead letter: failed
	// count new_order_failed
	// acknowledged
}
