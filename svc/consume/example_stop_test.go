package consume_test

import (
	"context"
	"fmt"
	"time"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
)

// The context of a handler ends after HANDLER_TIMEOUT, late in a stop of the service, and when
// the claim is suspended. A handler that returns its error then has not done the work: in a
// stop the event is not acknowledged, and is redelivered.
func ExampleHandler_stop() {
	ctx, stop := context.WithCancel(context.Background())
	processOrder := func(ctx context.Context, job consume.Job) error {
		fmt.Println("waiting for a courier")
		stop() // SIGTERM, and SHUTDOWN_TIMEOUT is nearly over
		select {
		case <-time.After(time.Hour): // pass ctx on to calls that wait
			return nil
		case <-ctx.Done():
			fmt.Println("not done:", context.Cause(ctx))
			return context.Cause(ctx)
		}
	}
	show(ctx, processOrder, consumetest.Message{Body: `{"type":"new_order","id":"1"}`})
	// Output:
	// waiting for a courier
	// not done: context canceled
}
