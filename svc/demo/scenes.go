package main

// scene is one act of the demo. Its commands are what one would type for it
// against the servers of docker-compose.
type scene struct {
	title    string
	promise  string // what it is to show, on one line
	text     string // of the narrator
	commands []string
	breaks   bool // it breaks servers, which has to be done to our own
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
		promise: "a service that was down gets what it has missed",
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
		text:    "The work of orders is now a slow call to another server. We kill orders in the middle of it. Its claims end with it, and the next process does the work.",
		commands: []string{
			"cd svc && go build .",
			"ENABLE_ETCD=true CLAIM_TTL=2s SERVICE_NAME=orders \\\n    WEBHOOK_URL=http://... ./svc &",
			plumber("126"),
			"kill -9 $!",
		},
		run: crash,
	},
	{
		title:   "The window",
		promise: "work done again after a crash has no effect twice, with a careful receiver",
		text:    "orders is killed after the work and before its record: the one window. The work is done again. A receiver that remembers the idempotency key notices, another does not.",
		commands: []string{
			"go run ./svc/receiver",
			"ENABLE_ETCD=true CLAIM_TTL=2s SERVICE_NAME=orders \\\n    WEBHOOK_URL=http://localhost:8090 ./svc &",
			plumber("127"),
			"kill -9 $!",
		},
		run: window,
	},
	{
		title:   "Race",
		promise: "two replicas, every event three times, processed once",
		text:    "Two replicas of orders race for 1,000 events that are published three times each: 1,000 are to be processed, 2,000 skipped.",
		commands: []string{
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=orders go run *.go",
			"cd svc && ENABLE_ETCD=true SERVICE_NAME=orders go run *.go",
			plumber("1") + "    # to 1000, thrice",
		},
		run: race,
	},
	{
		title:    "Outage",
		promise:  "etcd goes, then the broker: nothing lost, nothing twice",
		text:     "Under load, etcd is killed for three seconds, and then RabbitMQ. The publisher sends again what was not confirmed. Nothing may be lost, and nothing done twice.",
		commands: []string{"docker-compose kill etcd", "docker-compose up -d etcd", "docker-compose kill rabbitmq", "docker-compose up -d rabbitmq"},
		breaks:   true,
		run:      outage,
	},
}

func plumber(id string) string {
	return "plumber write rabbit --exchange-name events --routing-key=foo \\\n" +
		"    --input '" + event(id) + "'"
}
