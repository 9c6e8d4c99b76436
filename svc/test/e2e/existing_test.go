package e2e

import (
	"testing"

	"github.com/streadway/amqp"
)

// Queues and exchanges that exist are used as they are, whatever their arguments and the user who
// made them. Only a queue of another type than QUEUE_TYPE is refused.
func TestWhatExistsIsUsed(t *testing.T) {
	t.Parallel()
	const other = "queue orders-queue has another type than QUEUE_TYPE"
	tests := map[string]struct {
		byDefault string // the type of the virtual host's queues
		queueType string // QUEUE_TYPE
		queue     amqp.Table
		kind      string // of the exchange
		refused   bool
	}{
		"priorities":               {queue: amqp.Table{"x-max-priority": int32(5)}},
		"single active consumer":   {queue: amqp.Table{"x-single-active-consumer": true}},
		"time to live":             {queue: amqp.Table{"x-message-ttl": int32(3_600_000)}},
		"dead-letter exchange":     {queue: amqp.Table{"x-dead-letter-exchange": "elsewhere"}},
		"fanout exchange":          {kind: "fanout"},
		"quorum":                   {queue: amqp.Table{"x-queue-type": "quorum"}},
		"quorum, as asked":         {queueType: "quorum", queue: amqp.Table{"x-queue-type": "quorum"}},
		"quorum, not classic":      {queueType: "classic", queue: amqp.Table{"x-queue-type": "quorum"}, refused: true},
		"classic":                  {queueType: "classic"},
		"classic, as declared":     {queueType: "classic", queue: amqp.Table{"x-queue-type": "classic"}},
		"classic, not quorum":      {queueType: "quorum", refused: true},
		"priorities hide the type": {queueType: "classic", queue: amqp.Table{"x-max-priority": int32(5)}},
		"default quorum":           {byDefault: "quorum"},
		"default not used":         {byDefault: "quorum", queue: amqp.Table{"x-queue-type": "classic"}},
		"default not asked for":    {byDefault: "quorum", queueType: "classic", queue: amqp.Table{"x-queue-type": "classic"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vhost := newVhost(t)
			if tt.byDefault != "" {
				vhost += "-" + tt.byDefault
				ctl(t, "add_vhost", vhost, "--default-queue-type", tt.byDefault)
				ctl(t, "set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
			}
			e := newBrokerEnv(t, vhost, "orders")
			e.amqpURL = e.directAMQP
			e.channel(func(ch *amqp.Channel) error {
				if _, err := ch.QueueDelete("orders-queue", false, false, false); err != nil {
					return err
				}
				if err := ch.ExchangeDelete("events", false, false); err != nil {
					return err
				}
				kind := "topic"
				if tt.kind != "" {
					kind = tt.kind
				}
				if err := ch.ExchangeDeclare("events", kind, true, false, false, false, amqp.Table{"alternate-exchange": "others"}); err != nil {
					return err
				}
				_, err := ch.QueueDeclare("orders-queue", true, false, false, false, tt.queue)
				return err
			})
			s := e.start("orders", "QUEUE_TYPE="+tt.queueType)
			if tt.refused {
				s.wantExit(1)
				s.waitLog("level=ERROR", other, "hint=", "QUEUE_TYPE")
				return
			}
			s.waitLog("msg=consuming")
			e.publishBodies(orders("w", 3)...)
			e.publishBodies("poison")
			s.waitLogs(3, "msg=processed")
			s.waitLog("msg=dead-lettered")
			s.stop()
			if n := s.log.count("level=WARN"); n > 0 {
				t.Errorf("%d warnings", n)
			}
		})
	}
}
