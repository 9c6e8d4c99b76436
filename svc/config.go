package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Config is the environment, read once. The doc of the command says what each
// variable means; the tag "allowed" is what an error says about it.
type Config struct {
	Service       string   `env:"SERVICE_NAME" allowed:"orders (also order) or notify"`
	Etcd          bool     `env:"ENABLE_ETCD" envDefault:"false" allowed:"true, 1, false or 0"`
	AMQP          []string `env:"AMQP_URL" envDefault:"amqp://guest:guest@localhost:5672/" allowed:"amqp:// or amqps:// URLs, separated by commas, with no parameter but heartbeat" secret:"url"`
	EtcdEndpoints []string `env:"ETCD_ENDPOINTS" envDefault:"localhost:2379" allowed:"host:port, separated by commas" secret:"url"`
	StatsdAddr    string   `env:"STATSD_ADDR" envDefault:"localhost:8125" allowed:"host:port"`
	Webhook       string   `env:"WEBHOOK_URL" allowed:"an http:// or https:// URL" secret:"url"`

	Prefetch       int           `env:"PREFETCH" envDefault:"1000" allowed:"a whole number from 1 to 65535"`
	Concurrency    int           `env:"CONCURRENCY" envDefault:"32" allowed:"a whole number from 1 to 2147483647"`
	MaxAttempts    int           `env:"MAX_ATTEMPTS" envDefault:"3" allowed:"a whole number from 1 to 2147483647"`
	HandlerTimeout time.Duration `env:"HANDLER_TIMEOUT" envDefault:"30s" allowed:"a duration such as 30s, at least 1ms"`
	ClaimTTL       time.Duration `env:"CLAIM_TTL" envDefault:"10s" allowed:"a duration such as 10s, from 2s to 1h"`
	DedupWindow    time.Duration `env:"DEDUP_WINDOW" envDefault:"24h" allowed:"0, or a duration such as 24h, from 1s to 87600h (10 years)"`
	CacheSize      int           `env:"CACHE_SIZE" envDefault:"20000000" allowed:"a whole number from 1 to 2147483647"`
	QueueType      string        `env:"QUEUE_TYPE" envDefault:"classic" allowed:"classic or quorum"`
	Shutdown       time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"15s" allowed:"a duration such as 15s, at least 1s"`
	HealthAddr     string        `env:"HEALTH_ADDR" allowed:"host:port or :port"`

	AMQPCACert   string `env:"AMQP_CACERT" allowed:"the path of a PEM file"`
	AMQPCert     string `env:"AMQP_CERT" allowed:"the path of a PEM file, together with AMQP_KEY"`
	AMQPKey      string `env:"AMQP_KEY" allowed:"the path of a PEM file, together with AMQP_CERT"`
	EtcdUser     string `env:"ETCD_USERNAME" allowed:"a user name, together with ETCD_PASSWORD"`
	EtcdPassword string `env:"ETCD_PASSWORD" allowed:"a password, together with ETCD_USERNAME" secret:"all"`
	EtcdCACert   string `env:"ETCD_CACERT" allowed:"the path of a PEM file"`
	EtcdCert     string `env:"ETCD_CERT" allowed:"the path of a PEM file, together with ETCD_KEY"`
	EtcdKey      string `env:"ETCD_KEY" allowed:"the path of a PEM file, together with ETCD_CERT"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info" allowed:"debug, info, warn or error"`
	LogFormat string     `env:"LOG_FORMAT" envDefault:"text" allowed:"text or json"`

	// Derived.
	AMQPTLS, EtcdTLS *tls.Config
}

// readConfig reads and checks the whole environment. Its error has a line for
// every value that is not allowed.
func readConfig(environ []string) (Config, error) {
	values := env.ToMap(environ)
	maps.DeleteFunc(values, func(_, value string) bool { return value == "" }) // as good as not set
	var c Config
	bad := make(map[string]error) // by field
	// env returns no other error than an AggregateError.
	all, _ := errors.AsType[env.AggregateError](env.ParseWithOptions(&c, env.Options{Environment: values}))
	for _, err := range all.Errors {
		parse, ok := errors.AsType[env.ParseError](err)
		if !ok {
			return c, err
		}
		bad[parse.Name] = errNotAllowed
	}
	c.check(values, func(field string, err error) {
		if err != nil && bad[field] == nil {
			bad[field] = err
		}
	})
	return c, explain(values, bad)
}

// errNotAllowed is the error of a value about which there is nothing more to say
// than what is allowed.
var errNotAllowed = errors.New("")

func must(ok bool) error {
	if ok {
		return nil
	}
	return errNotAllowed
}

// check reports the fields whose values parse but are not allowed.
func (c *Config) check(values map[string]string, report func(field string, err error)) {
	_, known := roles[c.Service]
	report("Service", must(known))
	report("Etcd", must(slices.Contains([]string{"", "true", "1", "false", "0"}, values["ENABLE_ETCD"]))) // strconv takes T, too
	for _, broker := range c.AMQP {
		report("AMQP", checkAMQP(broker))
	}
	for _, endpoint := range c.EtcdEndpoints {
		report("EtcdEndpoints", checkHostPort(endpoint, false))
	}
	report("StatsdAddr", checkHostPort(c.StatsdAddr, false))
	if c.Webhook != "" {
		report("Webhook", checkURL(c.Webhook, "http", "https"))
	}
	report("Prefetch", must(1 <= c.Prefetch && c.Prefetch <= math.MaxUint16))
	report("Concurrency", must(1 <= c.Concurrency))
	report("MaxAttempts", must(1 <= c.MaxAttempts))
	report("HandlerTimeout", must(time.Millisecond <= c.HandlerTimeout))
	report("ClaimTTL", must(2*time.Second <= c.ClaimTTL && c.ClaimTTL <= time.Hour))
	report("DedupWindow", must(c.DedupWindow == 0 || time.Second <= c.DedupWindow && c.DedupWindow <= 10*365*24*time.Hour))
	report("CacheSize", must(1 <= c.CacheSize))
	report("QueueType", must(c.QueueType == "classic" || c.QueueType == "quorum"))
	report("Shutdown", must(time.Second <= c.Shutdown))
	if c.HealthAddr != "" {
		report("HealthAddr", checkHostPort(c.HealthAddr, true))
	}
	report("LogLevel", must(!strings.ContainsAny(values["LOG_LEVEL"], "+-"))) // slog takes INFO+3, too
	report("LogFormat", must(c.LogFormat == "text" || c.LogFormat == "json"))
	report("EtcdUser", must(c.EtcdUser != "" || c.EtcdPassword == ""))
	report("EtcdPassword", must(c.EtcdPassword != "" || c.EtcdUser == ""))

	c.AMQPTLS = tlsConfig(report, "AMQP", c.AMQPCACert, c.AMQPCert, c.AMQPKey)
	if c.AMQPTLS != nil && slices.ContainsFunc(c.AMQP, func(broker string) bool { return checkURL(broker, "amqps") != nil }) {
		report("AMQP", errors.New("AMQP_CACERT, AMQP_CERT or AMQP_KEY is set, so it must be amqps://"))
	}
	c.EtcdTLS = tlsConfig(report, "Etcd", c.EtcdCACert, c.EtcdCert, c.EtcdKey)
}

// explain returns an error with a line for each bad field, in their order.
func explain(values map[string]string, bad map[string]error) error {
	var lines []error
	for f := range reflect.TypeFor[Config]().Fields() {
		why, isBad := bad[f.Name]
		if !isBad {
			continue
		}
		name := f.Tag.Get("env")
		value, set := values[name]
		shown := fmt.Sprintf("%s=%q", name, value)
		switch secret := f.Tag.Get("secret"); {
		case !set:
			shown = name + " is not set"
		case secret == "all":
			shown = name + " (not shown)"
		case secret == "url":
			shown = fmt.Sprintf("%s=%q", name, query.ReplaceAllString(userinfo.ReplaceAllString(value, "${1}***@"), "?***"))
		}
		if text := why.Error(); text != "" {
			shown += ": " + text
		}
		lines = append(lines, fmt.Errorf("%s: allowed is %s", shown, f.Tag.Get("allowed")))
	}
	return errors.Join(lines...)
}

// userinfo is what may be users and passwords, in whatever is no URL, too: all
// up to the last @, but for the scheme.
var userinfo = regexp.MustCompile(`(?s)^([a-z]+://)?.*@`)

// query may hold a token.
var query = regexp.MustCompile(`(?s)\?.*`)
