// Svc consumes the events of one queue. With ENABLE_ETCD it processes each event
// effectively once, however often it is published or redelivered, and with any number
// of replicas: it claims the event's id in etcd before the work and records it
// afterwards. SERVICE_NAME is its role. All of its configuration is the environment:
//
//	SERVICE_NAME      required            orders (also order) or notify
//	ENABLE_ETCD       false               process each id once
//	AMQP_URL          amqp://guest:guest@localhost:5672/
//	                                      one or several, comma separated, tried in turn, of one virtual host;
//	                                      ?heartbeat=5 sets AMQP's heartbeat, in seconds
//	ETCD_ENDPOINTS    localhost:2379      comma separated
//	ETCD_PREFIX       /service/           what all keys begin with; /<vhost>/service/ if the virtual host is not /
//	STATSD_ADDR       localhost:8125      UDP
//	WEBHOOK_URL       none                each event is posted there, not to the handlers of roles.go
//	WEBHOOK_AUTHORIZATION                 the header Authorization of each post, such as Bearer and a token
//	PREFETCH          1000                unacknowledged deliveries held at most; 2 x CONCURRENCY until
//	                                      the handlers are known to be fast (held.go)
//	CONCURRENCY       32                  handlers at once; 1, with one replica, keeps the order
//	MAX_ATTEMPTS      3                   attempts at one delivery before it is dead-lettered
//	HANDLER_TIMEOUT   30s                 timeout of one attempt
//	CLAIM_TTL         10s                 how long ids stay claimed after their process has died; 2s to 1h
//	DEDUP_WINDOW      24h                 how long a processed id is remembered; 0: for ever; at most 10 years
//	CACHE_SIZE        20000000            ids remembered, 34 to 48 bytes of memory each; beyond it all
//	                                      replicas forget the oldest before DEDUP_WINDOW is over
//	QUEUE_TYPE        none                classic or quorum: the type that the queues must have; without
//	                                      it, that of what is there, or what the broker makes by default
//	SHUTDOWN_TIMEOUT  15s                 of a shutdown (shutdown.go); a second signal ends the process at once
//	HEALTH_ADDR       off                 /healthz, /readyz and /stats over HTTP
//	AMQP_CACERT, AMQP_CERT, AMQP_KEY      TLS to the broker: PEM files; AMQP_URL must be amqps://.
//	                                      A renewed client certificate is used without a restart
//	ETCD_USERNAME, ETCD_PASSWORD          of an etcd with authentication
//	ETCD_CACERT, ETCD_CERT, ETCD_KEY      TLS to etcd: PEM files
//	LOG_LEVEL         info                debug, info, warn or error
//	LOG_FORMAT        text                or json
//
// It exits with 0 when it was stopped by SIGINT or SIGTERM, 1 when it cannot go
// on (the message says how to fix that) or does not stop in time, 2 when its configuration is bad; go run
// says 1 for both failures. It waits for servers that are not up yet.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/config"
	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/health"
	"github.com/streamdal/gophercon2021/svc/metrics"
	"github.com/streamdal/gophercon2021/svc/outage"
	"github.com/streamdal/gophercon2021/svc/rabbit"
	"github.com/streamdal/gophercon2021/svc/webhook"
	"google.golang.org/grpc/grpclog"
)

func main() {
	// gRPC's log is for its developers. Its errors are returned, and logged by the callers.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "svc takes no arguments: all of its configuration is in the environment (go doc ./svc)")
		os.Exit(2)
	}
	cfg, err := config.Read(os.Environ(), slices.Sorted(maps.Keys(roles)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGPIPE) // a standard error that is closed ends nothing
	log := newLog(cfg)
	defer runtime.KeepAlive(heapFloor)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		stop() // a second signal ends the process at once
		// Whatever else the stop waits for, such as a standard error that is not read.
		time.AfterFunc(cfg.Shutdown+time.Second, func() { os.Exit(1) })
		time.AfterFunc(time.Second, func() {
			log.Info("stopping", "within", cfg.Shutdown, "hint", "a second signal ends the service at once")
		})
	})
	if err := run(ctx, cfg, log); err != nil {
		os.Exit(1) // run has logged it
	}
	log.Info("stopped")
}

// run serves until ctx ends and the deliveries in progress are finished. It logs its
// error.
func run(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	// fail logs and returns an error. It drops those during a stop, which the stop has caused.
	fail := func(err error, hint string) error {
		if err == nil || ctx.Err() != nil {
			return nil
		}
		log.Error("cannot go on", "error", err, "hint", hint)
		return err
	}
	log.Info("starting", "etcd", cfg.Etcd)
	if cfg.HandlerTimeout > maxWait/time.Duration(cfg.MaxAttempts) {
		log.Warn("the broker may not wait for all attempts: an event that always times out is then begun anew for ever",
			"hint", "keep MAX_ATTEMPTS x HANDLER_TIMEOUT below 20m, or raise the broker's consumer_timeout, 30m by default")
	}
	role := roles[cfg.Service]

	// At a stop, ctx ends: no more events are taken. Then handlerCtx ends: running handlers are
	// cancelled. Then etcdCtx ends: nothing waits for etcd any more. Then everything is closed.
	shutdown := newShutdown(cfg.Shutdown)
	slots := make(consume.Semaphore, cfg.Concurrency)
	handlerCtx := endAfter(ctx, shutdown.cancelHandlers, func() {
		if running := len(slots); running > 0 {
			log.Warn("running handlers are cancelled: their events are redelivered", "handlers", running,
				"hint", fmt.Sprintf("with a SHUTDOWN_TIMEOUT above HANDLER_TIMEOUT + 4s, here %v, they could finish", cfg.HandlerTimeout+4*time.Second))
		}
	})
	etcdCtx := endAfter(ctx, shutdown.leaveEtcd, nil)

	// Count to statsd.
	recorder := metrics.Start(cfg.StatsdAddr, role.name+"_", metrics.Names{
		Counters: consume.Counters(role.handlers), Timers: []string{timerHandle, timerClaim},
	}, log)
	defer recorder.Close()

	// Answer health checks.
	parts := []string{rabbit.PartBroker, rabbit.PartConsumer, rabbit.PartDeadLetters}
	if cfg.Etcd {
		parts = append(parts, partEtcd, partCache)
	}
	status := health.NewStatus(parts...)
	status.Set(rabbit.PartDeadLetters, nil) // until the broker takes no dead letters
	if cfg.Webhook != "" {
		status.Set(partWebhook, nil) // until nothing passes
	}
	stats := &stats{recorder: recorder, prefix: role.name + "_"}
	if cfg.HealthAddr != "" {
		stopServing, err := health.Serve(cfg.HealthAddr, status.Handler(stats.totals), log)
		if err != nil {
			return fail(err, "set HEALTH_ADDR to a free port of this machine")
		}
		defer stopServing()
	}

	// With etcd, read the ids that were processed, and begin to claim.
	var claims consume.Claimer = claim.NoDedup{}
	if cfg.Etcd {
		etcdClaims, closeClaims, err := openClaims(ctx, etcdCtx, cfg, shutdown.revoke, status, log)
		if err != nil {
			return fail(err, claim.Hint(err))
		}
		defer closeClaims()
		stats.claims.Store(etcdClaims)
		claims = timedClaims{etcdClaims, recorder}
	}

	// The work is that of the role (roles.go), or a POST to WEBHOOK_URL.
	handlers, inProcess := maps.Clone(role.handlers), cfg.Webhook == ""
	work, hint := "work", ""
	if !inProcess {
		work, hint = "webhook", "check that the receiver at WEBHOOK_URL is up; if other events are processed, this one may crash it"
		poster := webhook.New(cfg.Webhook, cfg.WebhookAuth, cfg.Concurrency)
		defer poster.Close()
		for t := range handlers {
			handlers[t] = poster.Handle
		}
	}
	held := newHeld(cfg)
	for t, handler := range handlers {
		handlers[t] = timedHandler(handler, recorder, held)
	}

	// Each delivery: parse, claim, work, complete, acknowledge.
	pipeline := &consume.Pipeline{
		Role: role.name, Handlers: handlers, Claims: claims, RequireID: cfg.Etcd, InProcess: inProcess,
		Counter: recorder, Log: log, MaxAttempts: cfg.MaxAttempts, Timeout: cfg.HandlerTimeout,
		Semaphore: slots,
		Outage: &outage.Log{
			Logger: log, Level: slog.LevelWarn, Hint: hint,
			Begins: "the " + work + " is unavailable: events wait, claimed and unacknowledged", Ends: "the " + work + " is available again",
		},
	}
	if !inProcess {
		defer status.Probe(partWebhook, pipeline.Refused)()
	}

	// With etcd, warn of consumers that claim no ids, and of claims of other environments.
	var consumers func(int)
	if claims := stats.claims.Load(); claims != nil {
		consumers = (&peers{sessions: claims.Sessions, after: cfg.ClaimTTL + 15*time.Second, log: log}).consumers
	}

	// Consume until ctx ends, through lost connections.
	err := rabbit.Consume(ctx, rabbit.Config{
		Server:   rabbit.Server{URLs: cfg.AMQP, TLS: cfg.AMQPTLS, CloseTimeout: shutdown.disconnect},
		Topology: rabbit.Topology{Queue: role.queue, Type: cfg.QueueType},
		Status:   status, Log: log,
		Low: held.low, Prefetch: held.most, Slow: held.slow, MaxInFlight: held.maxInFlight,
		OneFirst:  inProcess,
		Consumers: consumers,
		Handle: func(deliveryCtx context.Context, d consume.Delivery) {
			stats.inFlight.Add(1)
			defer stats.inFlight.Add(-1)
			pipeline.Handle(deliveryCtx, handlerCtx, d)
		},
	})
	return fail(err, rabbit.Hint(err))
}

// The parts that must be ready besides those of package rabbit.
const (
	partEtcd    = "etcd"
	partCache   = "cache"
	partWebhook = "webhook"
)
