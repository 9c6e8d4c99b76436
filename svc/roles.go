package main

import (
	"context"

	"github.com/streamdal/gophercon2021/svc/consume"
)

// roleNames are the values of SERVICE_NAME: a typo must not leave a queue
// behind that fills for ever.
var roleNames = map[string]string{"orders": "orders", "order": "orders", "notify": "notify"}

// role is what differs between the services.
type role struct {
	name  string
	queue string
	types []string // of the events that it handles
}

func newRole(name string) role {
	name = roleNames[name]
	return role{name: name, queue: name + "-queue", types: []string{"new_order"}}
}

// handlers returns what does the work: all of a role's types the same.
func (r role) handlers(work consume.Handler) map[string]consume.Handler {
	handlers := make(map[string]consume.Handler)
	for _, t := range r.types {
		handlers[t] = work
	}
	return handlers
}

// counters returns the names of all that is counted.
func (r role) counters() []string {
	names := []string{"malformed", "ignored"}
	for _, t := range r.types {
		names = append(names, t+"_ok", t+"_skipped", t+"_failed")
	}
	return names
}

// logged is the work of both roles without a webhook: the line that the
// pipeline logs about every event.
func logged(context.Context, consume.Job) error { return nil }
