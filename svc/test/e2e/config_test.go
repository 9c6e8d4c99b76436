package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// With a bad configuration the service exits at once and prints a line for each bad value,
// without a password. Which values are bad is tested in svc/config.
func TestBadConfiguration(t *testing.T) {
	tests := map[string]struct{ vars, want []string }{
		"no role": {nil, []string{"SERVICE_NAME is not set: allowed is notify or order or orders"}},
		"all at once": {
			[]string{"SERVICE_NAME=ordres", "AMQP_URL=amqp://u:s3cret@h:x", "ENABLE_ETCD=yes", "PREFETCH=0", "ETCD_PASSWORD=s3cret", "AMQP_KEY=/nonexistent"},
			[]string{`SERVICE_NAME="ordres": allowed is notify or order or orders`, `ENABLE_ETCD="yes": allowed is true, 1, false or 0`,
				`AMQP_URL="amqp://***@h:x": allowed is `, `PREFETCH="0": allowed is `, "ETCD_USERNAME is not set", "AMQP_CERT is not set"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(shared.bin)
			cmd.Env = tt.vars
			s := startCommand(t, name, cmd)
			s.wantExit(2)
			lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d lines, want %d:\n%s", len(lines), len(tt.want), s.log)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %d is %q, want %q", i, lines[i], want)
				}
			}
			if strings.Contains(s.log.String(), "s3cret") {
				t.Errorf("a password is shown:\n%s", s.log)
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
