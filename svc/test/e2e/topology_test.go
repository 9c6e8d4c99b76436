package e2e

import (
	"errors"
	"fmt"
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
		lose func(*amqp.Channel) error
		said int
	}{
		"exchange deleted": {func(ch *amqp.Channel) error { return ch.ExchangeDelete("events", false, false) }, 1},
		"exchange deleted and declared": {func(ch *amqp.Channel) error {
			if err := ch.ExchangeDelete("events", false, false); err != nil {
				return err
			}
			return ch.ExchangeDeclare("events", "topic", true, false, false, false, nil)
		}, 0},
		"binding removed": {func(ch *amqp.Channel) error { return ch.QueueUnbind("orders-queue", "#", "events", nil) }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := newBroker(t)
			s := e.start("orders", "HEALTH_ADDR=127.0.0.1:0")
			s.waitReady()
			e.channel(tt.lose)
			lost := time.Now()
			for i := 0; s.log.count("msg=processed") == 0; i++ {
				if time.Since(lost) > maxWait {
					t.Fatal("no event arrives")
				}
				// Publishing to an exchange that does not exist gets no confirm.
				e.tryPublish(fmt.Sprintf(`{"type":"new_order","id":"%d"}`, i))
				<-time.After(100 * time.Millisecond)
			}
			took := time.Since(lost)
			if took > 10*time.Second {
				t.Errorf("events arrive only %v after the loss", took)
			}
			<-time.After(4 * time.Second) // the topology is checked again
			if n := s.log.count("topology is restored"); n != tt.said {
				t.Errorf("the log says %d times that the topology is restored, want %d", n, tt.said)
			}
			if n := s.log.count("msg=consuming"); n != 1 {
				t.Errorf("the service began to consume %d times, want once", n)
			}
			t.Logf("events come %v after the loss", took.Round(time.Millisecond))
			s.stop()
		})
	}
}

// tryPublish publishes an event and does not wait for a confirm.
func (e *env) tryPublish(body string) {
	e.t.Helper()
	e.channel(func(ch *amqp.Channel) error {
		return ch.Publish("events", "foo", false, false, plumber(body))
	})
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
	e.channel(func(ch *amqp.Channel) error {
		return ch.ExchangeDelete("events", false, false)
	})
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
	for said, want := range map[string]int{"no exchange 'events'": 1, "refused for user": 1, "topology is restored": 1} {
		if n := s.log.count(said); n != want {
			t.Errorf("the log says %d times %q, want %d", n, said, want)
		}
	}
	e.publishBodies(orders("r", 1)...)
	s.waitLog("msg=processed")
	s.stop()
}
