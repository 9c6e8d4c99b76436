package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// A value that would be misread, or would have no effect, is refused with one line that
// says which values are allowed.
func TestValueIsRefused(t *testing.T) {
	const space = "there is white space in it"
	const port = "the port is not one from 1 to 65535"
	tests := []struct{ name, value, why string }{
		{"DEDUP_WINDOW", "87600h1s", "87600h (10 years)"},
		{"DEDUP_WINDOW", "2562047h", "87600h (10 years)"},
		{"DEDUP_WINDOW", "2562048h", "87600h (10 years)"}, // overflows
		{"DEDUP_WINDOW", "10y", "87600h (10 years)"},
		{"CLAIM_TTL", "1h1s", "from 2s to 1h"},
		{"CLAIM_TTL", "1999ms", "from 2s to 1h"},

		{"AMQP_URL", " amqp://h/", space},
		{"AMQP_URL", "amqp://h/ ", space},
		{"AMQP_URL", "amqp://a/, amqp://b/", space},
		{"AMQP_URL", "amqp://h/a b", space},
		{"AMQP_URL", "amqp://h/\n", space},
		{"AMQP_URL", "amqp:h", "// and host"},
		{"AMQP_URL", "amqp:///vhost", "// and host"},
		{"AMQP_URL", "amqp://:5672/", "// and host"},
		{"AMQP_URL", "h:5672", "does not begin with amqp:// or amqps://"},
		{"AMQP_URL", "http://h/", "does not begin with amqp:// or amqps://"},
		{"AMQP_URL", "amqp://a/,", "does not begin with amqp:// or amqps://"},
		{"AMQP_URL", "amqp://h:0/", port},
		{"AMQP_URL", "amqp://h:65536/", port},
		{"AMQP_URL", "amqp://h:/", port},
		{"AMQP_URL", "amqp://h/?connection_timeout=5", `"connection_timeout" has no effect`},
		{"AMQP_URL", "amqps://h/?heartbeat=5&verify=verify_none", `"verify" has no effect`},
		{"AMQP_URL", "amqp://h/?heartbeat=0", "heartbeat is a number of seconds"},
		{"AMQP_URL", "amqp://h/?heartbeat=5s", "heartbeat is a number of seconds"},
		{"AMQP_URL", "amqp://h/?heartbeat=65536", "heartbeat is a number of seconds"},
		{"AMQP_URL", "amqp://h/?heartbeat=5&heartbeat=6", "heartbeat is a number of seconds"},
		{"AMQP_URL", "amqp://h/#vhost", "what follows # has no effect"},

		{"ETCD_ENDPOINTS", " a:2379", space},
		{"ETCD_ENDPOINTS", "a:2379, b:2379", space},
		{"ETCD_ENDPOINTS", "a:2379\t", space},
		{"ETCD_ENDPOINTS", ":2379", "there is no host in it"},
		{"ETCD_ENDPOINTS", "a", "host:port"},
		{"ETCD_ENDPOINTS", "http://a:2379", "host:port"},
		{"ETCD_ENDPOINTS", "a:2379,", "host:port"},
		{"ETCD_ENDPOINTS", "a:0", port},
		{"ETCD_ENDPOINTS", "a:65536", port},
		{"ETCD_ENDPOINTS", "a:-1", port},
		{"ETCD_ENDPOINTS", "a:", port},
		{"STATSD_ADDR", "a:8125 ", space},
		{"STATSD_ADDR", "a:0", port},
		{"STATSD_ADDR", "a:70000", port},
		{"HEALTH_ADDR", ": 8080", space},
		{"HEALTH_ADDR", ":70000", port},
		{"HEALTH_ADDR", ":", port},

		{"WEBHOOK_URL", "http://h/ ", space},
		{"WEBHOOK_URL", "http://h/a b", space},
		{"WEBHOOK_URL", "http:h", "// and host"},
		{"WEBHOOK_URL", "http:///path", "// and host"},
		{"WEBHOOK_URL", "http://:80/", "// and host"},
		{"WEBHOOK_URL", "http://h:0/", port},
		{"WEBHOOK_URL", "http://h:99999/", port},
		{"WEBHOOK_URL", "h:80", "does not begin with http:// or https://"},

		{"LOG_LEVEL", "INFO+3", "debug, info, warn or error"},
		{"LOG_LEVEL", "debug-1", "debug, info, warn or error"},
	}
	for _, tt := range tests {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			cmd := exec.Command(shared.bin)
			cmd.Env = []string{"SERVICE_NAME=orders", tt.name + "=" + tt.value}
			s := startCommand(t, tt.name, cmd)
			s.wantExit(2)
			line := s.log.String()
			if strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, tt.name+"=") || !strings.Contains(line, tt.why) ||
				!strings.Contains(line, ": allowed is ") {
				t.Errorf("the log is %q, want one line that contains %q", line, tt.why)
			}
		})
	}
}

// An argument would have no effect, so it is refused.
func TestArgumentIsRefused(t *testing.T) {
	cmd := exec.Command(shared.bin, "-h")
	cmd.Env = []string{"SERVICE_NAME=orders"}
	s := startCommand(t, "argument", cmd)
	s.wantExit(2)
	if line := s.log.String(); !strings.Contains(line, "svc takes no arguments") {
		t.Errorf("the log is %q", line)
	}
}

// Values at the limits are accepted.
func TestValueIsAllowed(t *testing.T) {
	tests := [][]string{
		{"DEDUP_WINDOW=87600h", "CLAIM_TTL=1h", "LOG_LEVEL=INFO"},
		{"DEDUP_WINDOW=0", "CLAIM_TTL=2s", "LOG_LEVEL=Info"},
		{"DEDUP_WINDOW=1s", "AMQP_URL=amqps://u:p%23@127.0.0.1:1,amqp://[::1]:65535/%2f?heartbeat=65535"},
		{"ETCD_ENDPOINTS=127.0.0.1:1,[::1]:65535", "STATSD_ADDR=127.0.0.1:65535", "WEBHOOK_URL=http://u:p@[::1]:1/a?b=c%20d", "HEALTH_ADDR=127.0.0.1:0"},
	}
	for _, vars := range tests {
		t.Run(strings.Join(vars, " "), func(t *testing.T) {
			cmd := exec.Command(shared.bin)
			cmd.Env = append([]string{"SERVICE_NAME=orders", "AMQP_URL=amqp://127.0.0.1:1"}, vars...)
			s := startCommand(t, "allowed", cmd)
			s.waitLog("msg=starting")
			s.stop()
		})
	}
}

// The service sends the broker the heartbeat of AMQP_URL, or 5 s if there is none.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	for parameter, want := range map[string]string{"": "5", "?heartbeat=7": "7"} {
		t.Run(want, func(t *testing.T) {
			e := newProxiedEnv(t)
			e.amqpURL += parameter
			s := e.start("orders")
			s.waitLog("msg=consuming")
			vhost := e.directAMQP[strings.LastIndex(e.directAMQP, "/")+1:]
			out, err := shared.rabbit.Ctl(t.Context(), "list_connections", "-q", "--no-table-headers", "vhost", "timeout")
			e.must(err)
			found := 0
			for line := range strings.Lines(out) {
				if fields := strings.Fields(line); len(fields) == 2 && fields[0] == vhost {
					found++
					if fields[1] != want {
						t.Errorf("a connection has the heartbeat %s, want %s", fields[1], want)
					}
				}
			}
			if found == 0 {
				t.Errorf("no connection of %s in %q", vhost, out)
			}
			s.stop()
		})
	}
}
