package main

import (
	"context"

	"github.com/streamdal/gophercon2021/svc/consume"
)

// role has a queue, and a handler for each type of event.
type role struct {
	name     string
	queue    string
	handlers map[string]consume.Handler
}

var (
	ordersRole = role{"orders", "orders-queue", map[string]consume.Handler{"new_order": processOrder}}
	notifyRole = role{"notify", "notify-queue", map[string]consume.Handler{"new_order": notifyCustomer}}
)

// roles are the values of SERVICE_NAME. Other values are refused: a typo would
// leave a queue behind that fills for ever.
var roles = map[string]role{"orders": ordersRole, "order": ordersRole, "notify": notifyRole}

// processOrder is the work of orders: put your own code here. job.Body is the event.
// Pass on job.Key() as the idempotency key, and job.Token as the fencing token. Return soon
// after ctx ends. The package consume has an example of each of these:
//
//	nil                  done
//	an error, a panic    a failed attempt: again, up to MAX_ATTEMPTS, then dead-lettered
//	consume.Permanent    dead-lettered at once
//	consume.Unavailable  again without end, and not counted; in a long outage the event is moved to the end of its queue
//	consume.Unknown      an error, and the work may have been done: again even if the broker's connection is lost
func processOrder(ctx context.Context, job consume.Job) error {
	return nil // the pipeline logs the event
}

// notifyCustomer is the work of notify. Put your own code here.
func notifyCustomer(ctx context.Context, job consume.Job) error {
	return nil
}
