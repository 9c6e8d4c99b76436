package consume_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
)

// During an outage of what the work needs, the event is not to blame. The handler is called
// again until it succeeds, and no attempt is counted.
func ExampleUnavailable() {
	errDown := errors.New("the warehouse is down")
	answers := []error{errDown, errDown, errDown, errDown, nil}
	warehouse := func(context.Context) (err error) {
		err, answers = answers[0], answers[1:]
		return err
	}

	processOrder := func(ctx context.Context, job consume.Job) error {
		err := warehouse(ctx)
		fmt.Printf("attempt %d: %v\n", job.Attempt, err)
		if errors.Is(err, errDown) {
			return consume.Unavailable(err, 0)
		}
		return err
	}
	show(context.Background(), processOrder, consumetest.Message{Body: `{"type":"new_order","id":"1"}`})
	// Output:
	// attempt 1: the warehouse is down
	// attempt 1: the warehouse is down
	// attempt 1: the warehouse is down
	// attempt 1: the warehouse is down
	// attempt 1: <nil>
	// count new_order_ok
	// acknowledged
}
