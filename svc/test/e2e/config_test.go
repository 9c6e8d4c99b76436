package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// With a bad configuration or an argument, which would have no effect, the service exits at
// once and prints a line for each, without a password. More in svc/config.
func TestBadConfiguration(t *testing.T) {
	tests := map[string]struct{ args, vars, want []string }{
		"values": {nil,
			[]string{"SERVICE_NAME=ordres", "AMQP_URL=amqp://u:s3cret@h:x", "ENABLE_ETCD=yes", "ETCD_PASSWORD=s3cret"},
			[]string{`SERVICE_NAME="ordres": allowed is notify or order or orders`, `ENABLE_ETCD="yes": allowed is true, 1, false or 0`,
				`AMQP_URL="amqp://***@h:x": allowed is `, "ETCD_USERNAME is not set"}},
		"an argument": {[]string{"-h"}, []string{"SERVICE_NAME=orders"}, []string{"svc takes no arguments"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(shared.bin, tt.args...)
			cmd.Env = tt.vars
			s := startCommand(t, name, cmd)
			s.wantExit(2)
			lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
			for i, want := range tt.want {
				if len(lines) != len(tt.want) || !strings.HasPrefix(lines[i], want) {
					t.Fatalf("the log has %d lines, want %d, the first to begin with %q:\n%s", len(lines), len(tt.want), tt.want, s.log)
				}
			}
			s.wantNoSecrets("s3cret")
		})
	}
}

// The service sends the broker the heartbeat of AMQP_URL, or 5 s if there is none.
func TestHeartbeat(t *testing.T) {
	e, vhost := newBroker(t)
	for heartbeat, parameter := range map[int]string{5: "", 7: "?heartbeat=7"} {
		s := e.start("orders", "AMQP_URL="+e.amqpURL+parameter)
		s.waitLog("msg=consuming")
		connections, err := shared.rabbit.Ctl(t.Context(), "list_connections", "-q", "--no-table-headers", "vhost", "timeout")
		e.must(err)
		all, wanted := strings.Count(connections+"\n", vhost+"\t"), strings.Count(connections+"\n", fmt.Sprintf("%s\t%d\n", vhost, heartbeat))
		if all == 0 || all != wanted {
			t.Errorf("%d of %d connections have the heartbeat %d:\n%s", wanted, all, heartbeat, connections)
		}
		s.stop()
	}
}
