package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
)

// While the binding is missing, the broker drops every event without an error. The
// service restores it within 10 s, and logs that if the exchange was missing.
func TestTopologyLost(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		lose func(*env)
		said int
	}{
		"exchange deleted":              {(*env).deleteExchange, 1},
		"exchange deleted and declared": {func(e *env) { e.deleteExchange(); e.topology() }, 0},
		"binding removed": {func(e *env) {
			e.channel(func(ch *amqp.Channel) error { return ch.QueueUnbind("orders-queue", "#", "events", nil) })
		}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := newBroker(t)
			s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0")
			s.waitReady()
			tt.lose(e)
			lost := time.Now()
			eventually(t, "an event that arrives", func() error {
				// Publishing to an exchange that does not exist gets no confirm.
				e.channel(func(ch *amqp.Channel) error { return ch.Publish("events", "foo", false, false, plumber(order("1"))) })
				if s.log.count("msg=processed") == 0 {
					return errNotYet
				}
				return nil
			})
			took := time.Since(lost)
			if took > 10*time.Second {
				t.Errorf("events arrive only %v after the loss", took)
			}
			<-time.After(4 * time.Second) // the topology is checked again
			s.wantLines(tt.said, "topology is restored")
			s.wantLines(1, "msg=consuming")
			t.Logf("events come %v after the loss", took.Round(time.Millisecond))
			s.stop()
		})
	}
}

// A topology that cannot be restored is logged once for each reason, and the service is not
// ready. The status names the latest reason.
func TestTopologyNotRestored(t *testing.T) {
	t.Parallel() // it shares nothing
	vhost := newVhost(t)
	broker(t, addUser(vhost), permit(vhost, ".*", ".*", ".*"))
	e := newBrokerEnv(t, vhost, "orders")
	s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0")
	s.waitReady()
	broker(t, permit(vhost, "", ".*", ".*"))
	e.deleteExchange()
	s.waitLog("the topology is incomplete", "no exchange 'events'")
	s.waitReady("consumer")
	s.waitLog("the topology is incomplete", "refused for user", "hint=", "permissions")
	eventually(t, "the new reason in the status", func() error {
		var answer struct {
			Parts map[string]struct{ Error string }
		}
		get(t, s.healthAt()+"/readyz", &answer)
		if reason := answer.Parts["consumer"].Error; !strings.Contains(reason, "refused for user") {
			return errors.New(reason)
		}
		return nil
	})
	broker(t, permit(vhost, ".*", ".*", ".*"))
	s.waitReady()
	for _, said := range []string{"no exchange 'events'", "refused for user", "topology is restored"} {
		s.wantLines(1, said)
	}
	e.publishBodies(orders("r", 1)...)
	s.waitLog("msg=processed")
	s.stop()
}
