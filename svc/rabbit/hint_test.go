package rabbit

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/streadway/amqp"
)

// denied tells the lack of a right from refusals that pass, and Hint has a hint for
// refusals that an operator can fix. The reasons are those of RabbitMQ 3.10 and 4.0.
func TestDenied(t *testing.T) {
	tests := []struct {
		code   int
		reason string
		denied bool
		hint   string
	}{
		{403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.", true, "password"},
		{530, "NOT_ALLOWED - vhost nowhere not found", true, "virtual host"},
		{530, "NOT_ALLOWED - access to vhost '/' refused for user 'guest'", true, "permissions"},
		{403, "ACCESS_REFUSED - access to queue 'orders-queue' in vhost '/' refused for user 'guest'", true, "permissions"},
		{403, "ACCESS_REFUSED - configure access to queue 'orders-queue' in vhost '/' refused for user 'guest'", true, "permissions"},
		{541, "INTERNAL_ERROR - access to vhost '/' refused for user 'guest': vhost '/' is down", false, "restart_vhost"},
		{530, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': vhost '/' is down", false, "restart_vhost"},
		{530, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (0) is reached", false, "raise the limit"},
		{530, "NOT_ALLOWED - Connection refused for user 'guest': user connection limit (1) is reached", false, "raise the limit"},
		{403, "ACCESS_REFUSED - queue 'orders-queue' in vhost '/' in exclusive use", false, "other consumer"},
		{406, "PRECONDITION_FAILED - cannot declare queue 'orders-queue': queue limit in vhost '/' (1) is reached", false, "raise the limit"},
		{406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms", false, "MAX_ATTEMPTS x HANDLER_TIMEOUT"},
		{406, "PRECONDITION_FAILED - message size 5000 is larger than configured max size 4096", false, "max_message_size"},
		{404, "NOT_FOUND - home node 'rabbit@b' of durable queue 'orders-queue' in vhost '/' is down or inaccessible", false, ""},
		{320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			err := &amqp.Error{Code: tt.code, Reason: tt.reason, Server: true}
			if got := denied(err); got != tt.denied {
				t.Errorf("denied is %v", got)
			}
			if got := Hint(err); (got == "") != (tt.hint == "") || !strings.Contains(got, tt.hint) {
				t.Errorf("the hint is %q, want %q", got, tt.hint)
			}
		})
	}
	for hint, err := range map[string]error{
		"set QUEUE_TYPE": fmt.Errorf("queue orders-queue %w", errOtherType),
		"host and port":  &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded},
	} {
		if got := Hint(err); !strings.Contains(got, hint) {
			t.Errorf("the hint of %q is %q, want %q", err, got, hint)
		}
	}
	if denied(&amqp.Error{Code: 403, Reason: "ACCESS_REFUSED - Login was refused"}) {
		t.Error("an error that did not come from the broker counts as a refusal")
	}
}
