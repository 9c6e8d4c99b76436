package main

import "github.com/streamdal/gophercon2021/svc/test/harness"

// scene is one scene of the demo. Its commands show how to do the same by hand, from the
// root of the repository, with the servers of docker-compose.yaml.
type scene struct {
	title    string
	promise  string // the property that the scene shows, on one line
	text     string // the introduction
	commands []string
	run      func(*script)
}

var scenes = []scene{
	{
		title:   "Consume and produce",
		promise: "every event reaches both services",
		text:    "Two services consume the same events, each from a queue of its own. An event that is published once is processed by both.",
		commands: []string{
			"cd svc && SERVICE_NAME=orders go run *.go",
			"cd svc && SERVICE_NAME=notify go run *.go",
			plumber("123"),
		},
		run: consumeAndProduce,
	},
	{
		title:   "Recovery",
		promise: "a service that was down gets what it missed",
		text:    "We stop notify and go on publishing. Its events wait in its queue. When it is back, it gets them all.",
		commands: []string{
			"^C                 # in the terminal of notify",
			plumber("124"),
			"cd svc && SERVICE_NAME=notify go run *.go",
		},
		run: recovery,
	},
	{
		title:   "Idempotency",
		promise: "a duplicate is skipped, after a restart too",
		text:    "One event, published several times. Without etcd it is processed each time, which is wrong. With etcd it is processed once.",
		commands: []string{
			plumber("125") + "    # again and again",
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=orders go run *.go",
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=notify go run *.go",
		},
		run: idempotency,
	},
	{
		title:   "Crash",
		promise: "kill -9 in mid-work, and every event is processed once",
		text:    "The work of orders is now a slow call to another server. We kill orders in the middle of it. Its claims expire, and then the restarted orders does the work.",
		commands: []string{
			"go build -o /tmp/svc ./svc",
			"go run ./svc/receiver -delay 5s    # in another terminal",
			slowOrders,
			plumber("126"),
			"kill -9 $!",
			slowOrders,
		},
		run: crash,
	},
	{
		title:   "Crash window",
		promise: "repeated work has one effect, if its receiver checks the idempotency key",
		text:    "orders is killed after the work and before the record, so the work is repeated. A receiver that stores the idempotency key detects that; a plain one has the effect twice.",
		commands: []string{
			"go build -o /tmp/svc ./svc",
			"go run ./svc/receiver -delay 5s    # in another terminal",
			slowOrders,
			plumber("127"),
			"kill -9 $!                    # within 5 s",
			slowOrders,
			"curl localhost:8090           # the work was done twice, and had one effect",
		},
		run: crashWindow,
	},
	{
		title:   "Race",
		promise: "two replicas, every event three times, processed once",
		text:    "Two replicas of orders race for 1,000 events that are published three times each: 1,000 must be processed, 2,000 skipped.",
		commands: []string{
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=orders go run *.go    # twice",
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=notify go run *.go",
			plumber("1") + "    # ids 1 to 1000, each 3 times",
		},
		run: race,
	},
	{
		title:   "Outage",
		promise: "etcd fails, then the broker: nothing lost, nothing repeated",
		text:    "Under load, etcd is killed for three seconds, and then RabbitMQ. The publisher sends again what was not confirmed. Nothing may be lost, and nothing repeated.",
		commands: []string{
			"docker compose kill etcd",
			"docker compose up -d etcd",
			"docker compose kill rabbitmq",
			"docker compose up -d rabbitmq",
		},
		run: outage,
	},
}

// slowOrders starts orders with the work done by a receiver.
const slowOrders = "ENABLE_ETCD=true CLAIM_TTL=2s SERVICE_NAME=orders \\\n    WEBHOOK_URL=http://localhost:8090 /tmp/svc &"

func plumber(id string) string {
	return "plumber write rabbit --exchange-name events --routing-key=foo \\\n" +
		"    --input '" + harness.NewOrder(id) + "'"
}
