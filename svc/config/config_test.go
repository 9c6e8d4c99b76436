package config

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var services = []string{"notify", "orders"}

// read reads an environment with a role.
func read(vars ...string) (Config, error) {
	return Read(append([]string{"SERVICE_NAME=orders"}, vars...), services)
}

func TestDefaults(t *testing.T) {
	got, err := read("PREFETCH=", "WEBHOOK_URL=") // an empty value is as good as none
	must(t, err)
	want := Config{
		Service: "orders", AMQP: []string{"amqp://guest:guest@localhost:5672/"}, EtcdEndpoints: []string{"localhost:2379"}, EtcdPrefix: "/service/", StatsdAddr: "localhost:8125",
		Prefetch: 1000, Concurrency: 32, MaxAttempts: 3, HandlerTimeout: 30 * time.Second, ClaimTTL: 10 * time.Second, DedupWindow: 24 * time.Hour,
		CacheSize: 20_000_000, Shutdown: 15 * time.Second, LogLevel: slog.LevelInfo, LogFormat: "text",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Config (-want +got):\n%s", diff)
	}
}

// A value that would be misread, or would have no effect, is refused.
func TestValueIsRefused(t *testing.T) {
	for variable, values := range map[string][]string{
		"SERVICE_NAME":     {"ordres", "Orders", "orders "},
		"ENABLE_ETCD":      {"yes", "T", "TRUE", "2"},
		"PREFETCH":         {"0", "-1", "65536", "1.5", "1e3", "x"},
		"CONCURRENCY":      {"0", "-1", "2147483648", "x"},
		"MAX_ATTEMPTS":     {"0", "-1", "2147483648"},
		"HANDLER_TIMEOUT":  {"0", "5", "999us", "-1s"},
		"CLAIM_TTL":        {"1s", "1999ms", "1h1s"},
		"DEDUP_WINDOW":     {"-1s", "999ms", "87600h1s", "2562047h", "2562048h" /* overflows */, "10y"},
		"CACHE_SIZE":       {"0", "-1", "2147483648"},
		"QUEUE_TYPE":       {"stream", "Quorum"},
		"SHUTDOWN_TIMEOUT": {"0s", "999ms", "-1s"},
		"LOG_LEVEL":        {"loud", "INFO+3", "debug-1"},
		"LOG_FORMAT":       {"xml"},
		"AMQP_URL": {
			" amqp://h/", "amqp://h/ ", "amqp://a/, amqp://b/", "amqp://h/a b", "amqp://h/\n", // white space
			"amqp:h", "amqp:///vhost", "amqp://:5672/", "h:5672", "http://h/", "amqp://a/,",
			"amqp://h:0/", "amqp://h:65536/", "amqp://h:/", "amqp://h/#vhost",
			"amqp://h/?connection_timeout=5", "amqps://h/?heartbeat=5&verify=verify_none",
			"amqp://a/prod,amqp://b/staging", "amqp://a/,amqp://b/prod,amqp://c/", // two virtual hosts
			"amqp://h/?heartbeat=0", "amqp://h/?heartbeat=5s", "amqp://h/?heartbeat=65536", "amqp://h/?heartbeat=5&heartbeat=6", "amqp://h/?%zz",
		},
		"ETCD_ENDPOINTS": {
			" a:2379", "a:2379, b:2379", "a:2379\t", ":2379", "a", "http://a:2379", "a:2379,", "a:0", "a:65536", "a:-1", "a:", "u@a:2379", "a/b:2379",
		},
		"ETCD_PREFIX": {"service", "/service", "/a b/", "/service/ "},
		"STATSD_ADDR": {"a:8125 ", "a:0", "a:70000", ":8125", ":"},
		"HEALTH_ADDR": {"8080", ": 8080", ":70000", ":", "http://a:80"},
		"WEBHOOK_URL": {
			"http://h/ ", "http://h/a b", "http:h", "http:///path", "http://:80/", "http://h:0/", "http://h:99999/", "h:80", "ftp://h/", "http://h/#a",
		},
		"WEBHOOK_AUTHORIZATION": {" Bearer t", "Bearer t ", "Bearer t\n", "Bearer\tt", "Bearer t\r\nX-Evil: 1", "Bearer ü", "\x00"},
	} {
		for _, value := range values {
			t.Run(variable+"="+value, func(t *testing.T) {
				_, err := read(variable + "=" + value)
				if err == nil {
					t.Fatal("it is accepted")
				}
				if line := err.Error(); strings.Contains(line, "\n") || !strings.HasPrefix(line, variable+"=\"") || !strings.Contains(line, "\": allowed is ") {
					t.Errorf("the error is %q, want one line that names the variable, its value and what is allowed", line)
				}
			})
		}
	}
}

// Values at the limits are accepted.
func TestValueIsAllowed(t *testing.T) {
	for _, vars := range [][]string{
		{"DEDUP_WINDOW=87600h", "CLAIM_TTL=1h", "LOG_LEVEL=INFO", "ENABLE_ETCD=1", "PREFETCH=65535", "CONCURRENCY=2147483647"},
		{"DEDUP_WINDOW=0", "CLAIM_TTL=2s", "LOG_LEVEL=Info", "ENABLE_ETCD=0", "PREFETCH=1", "CONCURRENCY=1", "MAX_ATTEMPTS=1", "CACHE_SIZE=1", "SHUTDOWN_TIMEOUT=1s"},
		{"DEDUP_WINDOW=1s", "HANDLER_TIMEOUT=1ms", "QUEUE_TYPE=quorum", "LOG_FORMAT=json", "ENABLE_ETCD=true"},
		{"AMQP_URL=amqps://u:p%23@127.0.0.1:1,amqp://[::1]:65535/%2f?heartbeat=65535,amqp://[::1]/,amqp://h?heartbeat=1"},
		{"ETCD_ENDPOINTS=127.0.0.1:1,[::1]:65535", "STATSD_ADDR=127.0.0.1:65535", "WEBHOOK_URL=http://u:p@[::1]:1/a?b=c%20d", "HEALTH_ADDR=127.0.0.1:0"},
		{"AMQP_URL=amqp://a/prod,amqp://b/prod?heartbeat=5,amqps://u:p@c:1/prod", "ETCD_PREFIX=/"},
		{"WEBHOOK_AUTHORIZATION=Basic dTpw", "WEBHOOK_URL=http://h/a@b"},
		{"WEBHOOK_URL=https://h", "HEALTH_ADDR=:65535", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"},
	} {
		if _, err := read(vars...); err != nil {
			t.Errorf("%v: %v", vars, err)
		}
	}
}

// Every bad value has a line, and what two variables must be together is one of them.
func TestAllBadValuesAtOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		vars, want []string // want has what each line begins with
	}{
		"no role": {nil, []string{"SERVICE_NAME is not set: allowed is notify or orders"}},
		"several": {
			[]string{"SERVICE_NAME=ordres", "ENABLE_ETCD=yes", "PREFETCH=0", "CONCURRENCY=x", "STATSD_ADDR=:", "LOG_FORMAT=xml"},
			[]string{`SERVICE_NAME="ordres": allowed is notify or orders`, `ENABLE_ETCD="yes": allowed is true, 1, false or 0`, `STATSD_ADDR=":"`, `PREFETCH="0"`, `CONCURRENCY="x"`, `LOG_FORMAT="xml"`},
		},
		"a user without a password": {[]string{"SERVICE_NAME=orders", "ETCD_USERNAME=root"}, []string{"ETCD_PASSWORD is not set"}},
		"a password without a user": {[]string{"SERVICE_NAME=orders", "ETCD_PASSWORD=s3cret"}, []string{"ETCD_USERNAME is not set"}},
		"two logins at the webhook": {
			[]string{"SERVICE_NAME=orders", "WEBHOOK_URL=http://u:p@h", "WEBHOOK_AUTHORIZATION=Bearer s3cret"},
			[]string{`WEBHOOK_AUTHORIZATION="***": allowed is visible ASCII`},
		},
		"files": {
			[]string{"SERVICE_NAME=orders", "AMQP_CACERT=/nonexistent", "AMQP_CERT=/nonexistent", "ETCD_KEY=/nonexistent"},
			[]string{
				"AMQP_URL is not set: allowed is amqp:// or amqps:// URLs",
				`AMQP_CACERT="/nonexistent": allowed is the path of a PEM file (open /nonexistent: no such file`,
				"AMQP_KEY is not set: allowed is the path of a PEM file (AMQP_CERT is set)",
				"ETCD_CERT is not set: allowed is the path of a PEM file (ETCD_KEY is set)",
			},
		},
		"no certificates": {
			[]string{"SERVICE_NAME=orders", "ETCD_CACERT=config.go", "ETCD_CERT=config.go", "ETCD_KEY=config.go"},
			[]string{
				`ETCD_CACERT="config.go": allowed is the path of a PEM file (there is no certificate in it)`,
				`ETCD_CERT="config.go": allowed is the path of a PEM file (tls: `,
			},
		},
		"TLS to one broker of two": {
			[]string{"SERVICE_NAME=orders", "AMQP_CACERT=config.go", "AMQP_URL=amqps://a/,amqp://b/"},
			[]string{`AMQP_URL="amqps://a/,amqp://b/"`, "AMQP_CACERT="},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(tt.vars, services)
			if err == nil {
				t.Fatal("the values are accepted")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d lines, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %d is %q, want %q", i, lines[i], want)
				}
			}
		})
	}
}

// A value that cannot be parsed is refused, whatever the type of its field.
func TestEveryVariableHasARule(t *testing.T) {
	n := 0
	for field := range reflect.TypeFor[Config]().Fields() {
		variable := field.Tag.Get("env")
		if variable == "" || field.Type.Kind() == reflect.String || field.Type.Kind() == reflect.Slice {
			continue
		}
		n++
		if _, err := read(variable + "=x"); err == nil || !strings.HasPrefix(err.Error(), variable+`="x"`) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=x: %v", variable, err)
		}
	}
	if n < 9 {
		t.Errorf("only %d variables are no strings", n)
	}
}

// An error about a bad value never shows its password.
func TestNoPasswordIsShown(t *testing.T) {
	for _, bad := range []string{
		"AMQP_URL=guest:s3cret@localhost:5672", // no scheme
		"AMQP_URL=amqp://u:s3,cret@localhost/", // a comma separates URLs
		"AMQP_URL=amqp://u:s3%cret@localhost/",
		"AMQP_URL=amqp://u:s3/cret@localhost/",
		"AMQP_URL=amqp://u:s3#cret@localhost/",
		"AMQP_URL=amqp://a:s3cret@localhost:x,amqp://b:s3cret@localhost:y",
		"AMQP_URL=amqp://a:s3@cret@localhost:x",
		"AMQP_URL=http://user:s3cret@host/,amqp://u:s3cret@h:x",
		"WEBHOOK_URL=u:s3cret@localhost/hook",
		"WEBHOOK_URL=ftp://u:s3cret@localhost/",
		"WEBHOOK_URL=localhost/hook?token=s3cret",
		"ETCD_ENDPOINTS=http://u:s3cret@localhost:2379",
		"ETCD_PASSWORD=s3cret", // without a user
		"WEBHOOK_AUTHORIZATION=Bearer s3cret\n",
	} {
		_, err := read(bad)
		if err == nil {
			t.Errorf("%s is accepted", bad)
		} else if text := err.Error(); strings.Contains(text, "s3") || strings.Contains(text, "cret@") || strings.Contains(text, "\n") {
			t.Errorf("%s: %s", bad, text)
		}
	}
}
