package harness

import (
	"fmt"

	"github.com/streadway/amqp"
)

// IDs returns n event ids: a prefix, followed by numbers from first on.
func IDs(prefix string, first, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, first+i)
	}
	return ids
}

// NewOrder returns an event of type new_order, which both roles handle.
func NewOrder(id string) string { return fmt.Sprintf(`{"type":"new_order","id":"%s"}`, id) }

// NewOrders returns a message for each id with an event of type new_order.
func NewOrders(ids ...string) []amqp.Publishing {
	messages := make([]amqp.Publishing, len(ids))
	for i, id := range ids {
		messages[i] = Message(NewOrder(id))
	}
	return messages
}
