package e2e

import (
	"cmp"
	"testing"

	"github.com/streadway/amqp"
)

// Queues and exchanges that exist are used as they are, whatever their arguments and the user who
// made them. Only a queue of another type than QUEUE_TYPE is refused.
func TestWhatExistsIsUsed(t *testing.T) {
	t.Parallel()
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
		"quorum":                   {queue: quorum},
		"quorum, as asked":         {queueType: "quorum", queue: quorum},
		"quorum, not classic":      {queueType: "classic", queue: quorum, refused: true},
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
			e.deleteExchange()
			e.channel(func(ch *amqp.Channel) error {
				return ch.ExchangeDeclare("events", cmp.Or(tt.kind, "topic"), true, false, false, false, amqp.Table{"alternate-exchange": "others"})
			})
			e.replaceQueue(tt.queue)
			s := e.start("orders", "QUEUE_TYPE="+tt.queueType)
			if tt.refused {
				s.wantExit(1)
				s.waitLog("level=ERROR", "queue orders-queue has another type than QUEUE_TYPE", "hint=", "QUEUE_TYPE")
				return
			}
			s.waitLog("msg=consuming")
			e.publishBodies(orders("w", 3)...)
			e.publishBodies("poison")
			s.waitLogs(3, "msg=processed")
			s.waitLog("msg=dead-lettered")
			s.stop()
			s.wantLines(0, "level=WARN")
		})
	}
}
