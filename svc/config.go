package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/streadway/amqp"
)

// Config is the environment, read once. The doc of the command says what each
// variable means; the tag "allowed" is what an error says about it.
type Config struct {
	Service  string   `env:"SERVICE_NAME" allowed:"orders (also order) or notify"`
	Etcd     boolean  `env:"ENABLE_ETCD" envDefault:"false" allowed:"true, 1, false or 0"`
	AMQP     []string `env:"AMQP_URL" envDefault:"amqp://guest:guest@localhost:5672/" allowed:"amqp:// or amqps:// URLs, separated by commas" secret:"url"`
	EtcdAt   []string `env:"ETCD_ENDPOINTS" envDefault:"localhost:2379" allowed:"host:port, separated by commas" secret:"url"`
	StatsdAt string   `env:"STATSD_ADDR" envDefault:"localhost:8125" allowed:"host:port"`
	Webhook  string   `env:"WEBHOOK_URL" allowed:"an http:// or https:// URL" secret:"url"`

	Prefetch       int           `env:"PREFETCH" envDefault:"1000" allowed:"a whole number from 1 to 65535"`
	Concurrency    int           `env:"CONCURRENCY" envDefault:"32" allowed:"a whole number, at least 1"`
	MaxAttempts    int           `env:"MAX_ATTEMPTS" envDefault:"3" allowed:"a whole number, at least 1"`
	HandlerTimeout time.Duration `env:"HANDLER_TIMEOUT" envDefault:"30s" allowed:"a duration such as 30s, at least 1ms"`
	ClaimTTL       time.Duration `env:"CLAIM_TTL" envDefault:"10s" allowed:"a duration such as 10s, at least 2s"`
	DedupWindow    time.Duration `env:"DEDUP_WINDOW" envDefault:"24h" allowed:"0, or a duration such as 24h, at least 1s"`
	CacheSize      int           `env:"CACHE_SIZE" envDefault:"20000000" allowed:"a whole number, at least 1"`
	QueueType      string        `env:"QUEUE_TYPE" envDefault:"classic" allowed:"classic or quorum"`
	Shutdown       time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"15s" allowed:"a duration such as 15s, at least 1s"`
	HealthAt       string        `env:"HEALTH_ADDR" allowed:"host:port or :port"`

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

// boolean is stricter than strconv.ParseBool, which takes "T" and "TRUE", too.
type boolean bool

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *boolean) UnmarshalText(text []byte) error {
	switch string(text) {
	case "true", "1":
		*b = true
	case "false", "0":
		*b = false
	default:
		return errors.New("")
	}
	return nil
}

// readConfig reads and checks the whole environment. Its error has a line for
// every value that is not allowed.
func readConfig(environ []string) (Config, error) {
	values := env.ToMap(environ)
	for name, value := range values { // empty is as good as not set
		if value == "" {
			delete(values, name)
		}
	}
	var c Config
	bad := make(map[string]error) // by field
	var all env.AggregateError
	if err := env.ParseWithOptions(&c, env.Options{Environment: values}); errors.As(err, &all) {
		for _, err := range all.Errors {
			var parse env.ParseError
			if !errors.As(err, &parse) {
				return c, err
			}
			bad[parse.Name] = errors.New("")
		}
	} else if err != nil {
		return c, err
	}
	c.check(func(field string, ok bool, why error) {
		if !ok && bad[field] == nil {
			bad[field] = cmp.Or(why, errors.New(""))
		}
	})
	return c, explain(values, bad)
}

// check tells invalid which fields have values that parse but are not allowed.
func (c *Config) check(valid func(field string, ok bool, why error)) {
	_, known := roles[c.Service]
	valid("Service", known, nil)
	valid("AMQP", all(c.AMQP, isAMQP), nil)
	valid("EtcdAt", all(c.EtcdAt, isHostPort), nil)
	valid("StatsdAt", isHostPort(c.StatsdAt), nil)
	valid("Webhook", c.Webhook == "" || isHTTP(c.Webhook), nil)
	valid("Prefetch", 1 <= c.Prefetch && c.Prefetch <= math.MaxUint16, nil)
	valid("Concurrency", 1 <= c.Concurrency, nil)
	valid("MaxAttempts", 1 <= c.MaxAttempts, nil)
	valid("HandlerTimeout", time.Millisecond <= c.HandlerTimeout, nil)
	valid("ClaimTTL", 2*time.Second <= c.ClaimTTL, nil)
	valid("DedupWindow", c.DedupWindow == 0 || time.Second <= c.DedupWindow, nil)
	valid("CacheSize", 1 <= c.CacheSize, nil)
	valid("QueueType", c.QueueType == "classic" || c.QueueType == "quorum", nil)
	valid("Shutdown", time.Second <= c.Shutdown, nil)
	valid("HealthAt", c.HealthAt == "" || isListen(c.HealthAt), nil)
	valid("LogFormat", c.LogFormat == "text" || c.LogFormat == "json", nil)
	valid("EtcdUser", c.EtcdUser != "" || c.EtcdPassword == "", nil)
	valid("EtcdPassword", c.EtcdPassword != "" || c.EtcdUser == "", nil)
	c.AMQPTLS = tlsConfig(valid, [3]string{"AMQPCACert", "AMQPCert", "AMQPKey"}, c.AMQPCACert, c.AMQPCert, c.AMQPKey)
	valid("AMQP", c.AMQPTLS == nil || all(c.AMQP, isAMQPS), errors.New("AMQP_CACERT, AMQP_CERT or AMQP_KEY is set, so it must be amqps://"))
	c.EtcdTLS = tlsConfig(valid, [3]string{"EtcdCACert", "EtcdCert", "EtcdKey"}, c.EtcdCACert, c.EtcdCert, c.EtcdKey)
}

// tlsConfig loads what is named. It returns nil when nothing is.
func tlsConfig(valid func(field string, ok bool, why error), fields [3]string, ca, cert, key string) *tls.Config {
	if ca == "" && cert == "" && key == "" {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		cfg.RootCAs = x509.NewCertPool()
		if err == nil && !cfg.RootCAs.AppendCertsFromPEM(pem) {
			err = errors.New("there is no certificate in it")
		}
		valid(fields[0], err == nil, err)
	}
	valid(fields[1], cert != "" || key == "", nil)
	valid(fields[2], key != "" || cert == "", nil)
	if cert != "" && key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		valid(fields[1], err == nil, err)
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
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

func all(values []string, ok func(string) bool) bool {
	for _, v := range values {
		if !ok(v) {
			return false
		}
	}
	return len(values) > 0
}

func isAMQP(s string) bool {
	_, err := amqp.ParseURI(s)
	return err == nil
}

// isAMQPS is asked where TLS is wanted: a URL without it would silently do without.
func isAMQPS(s string) bool {
	uri, err := amqp.ParseURI(s)
	return err == nil && uri.Scheme == "amqps"
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func isHostPort(s string) bool {
	host, _, err := net.SplitHostPort(s)
	return err == nil && host != "" && isListen(s)
}

func isListen(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil && !strings.ContainsAny(s, " /@")
}
