// Package config reads the configuration of the service, which is its environment.
package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Config is the environment. The doc of the command says what each variable means.
type Config struct {
	Service       string   `env:"SERVICE_NAME"`
	Etcd          bool     `env:"ENABLE_ETCD" envDefault:"false"`
	AMQP          []string `env:"AMQP_URL" envDefault:"amqp://guest:guest@localhost:5672/"`
	EtcdEndpoints []string `env:"ETCD_ENDPOINTS" envDefault:"localhost:2379"`
	EtcdPrefix    string   `env:"ETCD_PREFIX"` // the default depends on AMQP_URL
	StatsdAddr    string   `env:"STATSD_ADDR" envDefault:"localhost:8125"`
	Webhook       string   `env:"WEBHOOK_URL"`
	WebhookAuth   string   `env:"WEBHOOK_AUTHORIZATION"`

	Prefetch       int           `env:"PREFETCH" envDefault:"1000"`
	Concurrency    int           `env:"CONCURRENCY" envDefault:"32"`
	MaxAttempts    int           `env:"MAX_ATTEMPTS" envDefault:"3"`
	HandlerTimeout time.Duration `env:"HANDLER_TIMEOUT" envDefault:"30s"`
	ClaimTTL       time.Duration `env:"CLAIM_TTL" envDefault:"10s"`
	DedupWindow    time.Duration `env:"DEDUP_WINDOW" envDefault:"24h"`
	CacheSize      int           `env:"CACHE_SIZE" envDefault:"20000000"`
	QueueType      string        `env:"QUEUE_TYPE"`
	Shutdown       time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"15s"`
	HealthAddr     string        `env:"HEALTH_ADDR"`

	AMQPCACert   string `env:"AMQP_CACERT"`
	AMQPCert     string `env:"AMQP_CERT"`
	AMQPKey      string `env:"AMQP_KEY"`
	EtcdUser     string `env:"ETCD_USERNAME"`
	EtcdPassword string `env:"ETCD_PASSWORD"`
	EtcdCACert   string `env:"ETCD_CACERT"`
	EtcdCert     string `env:"ETCD_CERT"`
	EtcdKey      string `env:"ETCD_KEY"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat string     `env:"LOG_FORMAT" envDefault:"text"`

	// From the files that the variables name; nil: none is named.
	AMQPTLS, EtcdTLS *tls.Config
}

// Read reads and checks an environment. services are the values of SERVICE_NAME. The error
// has a line for each variable whose value is not allowed.
func Read(environ, services []string) (Config, error) {
	values := env.ToMap(environ)
	maps.DeleteFunc(values, func(_, value string) bool { return value == "" }) // as good as not set
	// A value that cannot be parsed leaves its field as it is here, and no rule allows that.
	c := Config{DedupWindow: -1}
	_ = env.ParseWithOptions(&c, env.Options{Environment: values})
	c.EtcdPrefix = cmp.Or(c.EtcdPrefix, defaultPrefix(vhost(c.AMQP[0])))
	var bad []error
	for _, r := range c.check(values, services) {
		if !r.ok {
			bad = append(bad, fmt.Errorf("%s: allowed is %s", shown(r.variable, values), r.allowed))
		}
	}
	return c, errors.Join(bad...)
}

// rule says which values of a variable are allowed, and whether its value is one of them.
type rule struct {
	variable string
	ok       bool
	allowed  string
}

// check loads the TLS files and returns a rule for each variable.
func (c *Config) check(values map[string]string, services []string) []rule {
	const (
		number  = "a whole number from 1 to 2147483647"
		address = "host:port with a port from 1 to 65535, without white space"
		url     = "with a host, any port from 1 to 65535, and neither white space nor # (%23 in a password)"
	)
	amqpTLS, amqpRules := loadTLS("AMQP", c.AMQPCACert, c.AMQPCert, c.AMQPKey)
	etcdTLS, etcdRules := loadTLS("ETCD", c.EtcdCACert, c.EtcdCert, c.EtcdKey)
	c.AMQPTLS, c.EtcdTLS = amqpTLS, etcdTLS
	secure := func(broker string) bool { return amqpTLS == nil || strings.HasPrefix(broker, "amqps:") }
	sameVhost := func(broker string) bool { return vhost(broker) == vhost(c.AMQP[0]) }
	return slices.Concat([]rule{
		{"SERVICE_NAME", slices.Contains(services, c.Service), strings.Join(services, " or ")},
		// By their text, because strconv takes T, too, and slog INFO+3.
		{"ENABLE_ETCD", slices.Contains([]string{"", "true", "1", "false", "0"}, values["ENABLE_ETCD"]), "true, 1, false or 0"},
		{"LOG_LEVEL", slices.Contains([]string{"", "debug", "info", "warn", "error"}, strings.ToLower(values["LOG_LEVEL"])), "debug, info, warn or error"},
		{"AMQP_URL", all(c.AMQP, isBroker) && all(c.AMQP, secure) && all(c.AMQP, sameVhost),
			"amqp:// or amqps:// URLs of one virtual host, separated by commas, " + url + ", no parameter but heartbeat, from 1 to 65535 (seconds), " +
				"and amqps:// if AMQP_CACERT, AMQP_CERT or AMQP_KEY is set"},
		{"ETCD_ENDPOINTS", all(c.EtcdEndpoints, isAddress), address + ", several separated by commas"},
		{"ETCD_PREFIX", strings.HasSuffix(c.EtcdPrefix, "/") && !hasSpace(c.EtcdPrefix), "what ends with /, such as /service/, without white space"},
		{"STATSD_ADDR", isAddress(c.StatsdAddr), address},
		{"WEBHOOK_URL", c.Webhook == "" || isURL(c.Webhook, "http", "https"), "an http:// or https:// URL " + url},
		{"WEBHOOK_AUTHORIZATION", c.WebhookAuth == "" || authorization.MatchString(c.WebhookAuth) && !hasUser(c.Webhook),
			"visible ASCII with single spaces between, such as Bearer and a token, and only without a user in WEBHOOK_URL"},
		{"PREFETCH", 1 <= c.Prefetch && c.Prefetch <= math.MaxUint16, "a whole number from 1 to 65535"},
		{"CONCURRENCY", 1 <= c.Concurrency, number},
		{"MAX_ATTEMPTS", 1 <= c.MaxAttempts, number},
		{"HANDLER_TIMEOUT", time.Millisecond <= c.HandlerTimeout, "a duration such as 30s, at least 1ms"},
		{"CLAIM_TTL", 2*time.Second <= c.ClaimTTL && c.ClaimTTL <= time.Hour, "a duration such as 10s, from 2s to 1h"},
		{"DEDUP_WINDOW", c.DedupWindow == 0 || time.Second <= c.DedupWindow && c.DedupWindow <= 10*365*24*time.Hour,
			"0, or a duration such as 24h, from 1s to 87600h (10 years)"},
		{"CACHE_SIZE", 1 <= c.CacheSize, number},
		{"QUEUE_TYPE", slices.Contains([]string{"", "classic", "quorum"}, c.QueueType), "classic or quorum"},
		{"SHUTDOWN_TIMEOUT", time.Second <= c.Shutdown, "a duration such as 15s, at least 1s"},
		{"HEALTH_ADDR", c.HealthAddr == "" || isListenAddress(c.HealthAddr), "host:port or :port with a port from 0 (any) to 65535, without white space"},
		{"ETCD_USERNAME", c.EtcdUser != "" || c.EtcdPassword == "", "a user name, together with ETCD_PASSWORD"},
		{"ETCD_PASSWORD", c.EtcdPassword != "" || c.EtcdUser == "", "a password, together with ETCD_USERNAME"},
		{"LOG_FORMAT", c.LogFormat == "text" || c.LogFormat == "json", "text or json"},
	}, amqpRules, etcdRules)
}

// authorization matches what can stand in the header Authorization.
var authorization = regexp.MustCompile(`^[!-~]+( [!-~]+)*$`)

func all(values []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(values, func(value string) bool { return !ok(value) })
}

// shown returns a variable and its value, without what may be a user, a password or a token
// in it. ETCD_PASSWORD is refused only if it is not set.
func shown(variable string, values map[string]string) string {
	value, set := values[variable]
	if !set {
		return variable + " is not set"
	}
	if variable == "WEBHOOK_AUTHORIZATION" {
		value = "***"
	}
	value = query.ReplaceAllString(userinfo.ReplaceAllString(value, "${1}***@"), "?***")
	return fmt.Sprintf("%s=%q", variable, value)
}

var (
	// userinfo matches all up to the last @ but for the scheme, also in what is no URL.
	userinfo = regexp.MustCompile(`(?s)^([a-z]+://)?.*@`)
	query    = regexp.MustCompile(`(?s)\?.*`)
)
