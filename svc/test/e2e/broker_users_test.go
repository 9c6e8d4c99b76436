package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// The permissions in the README are sufficient, and each of them is necessary.
func TestBrokerPermissions(t *testing.T) {
	t.Parallel() // it shares nothing
	const configure, write, read = `^(events|orders-queue(\.dead)?)$`, `^(orders-queue|amq\.default)$`, `^(events|orders-queue)$`
	others := strings.NewReplacer("orders", "notify")
	tests := map[string]struct{ role, configure, write, read, log string }{
		"enough":                {"orders", configure, write, read, ""},
		"enough for notify":     {"notify", others.Replace(configure), others.Replace(write), others.Replace(read), ""},
		"no exchange":           {"orders", `^orders-queue(\.dead)?$`, write, read, "access to exchange 'events'"},
		"no queue":              {"orders", `^(events|orders-queue\.dead)$`, write, read, "access to queue 'orders-queue'"},
		"no dead queue":         {"orders", `^(events|orders-queue)$`, write, read, "access to queue 'orders-queue.dead'"},
		"no binding":            {"orders", configure, `^amq\.default$`, read, "access to queue 'orders-queue'"},
		"no reading of events":  {"orders", configure, write, `^orders-queue$`, "access to exchange 'events'"},
		"no consuming":          {"orders", configure, write, `^events$`, "access to queue 'orders-queue'"},
		"no letters to be dead": {"orders", configure, `^orders-queue$`, read, "access to exchange 'amq.default'"},
		"of the other role":     {"notify", configure, write, read, "access to queue 'notify-queue'"},
	}
	vhosts := make(map[string]string)
	var users []string
	for name, tt := range tests {
		vhosts[name] = newVhost(t)
		users = append(users, addUser(vhosts[name]), permit(vhosts[name], tt.configure, tt.write, tt.read))
	}
	broker(t, users...)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newBrokerEnv(t, vhosts[name], tt.role)
			s := e.start(tt.role, "LOG_LEVEL=debug")
			switch {
			case tt.log == "":
				e.publishBodies(orders("p", 3)...)
				e.publishBodies("poison")
				s.waitLogs(3, "msg=processed")
				s.waitLog("msg=dead-lettered")
				s.stop()
				if n := s.log.count("level=WARN"); n > 0 {
					t.Errorf("%d warnings", n)
				}
			case strings.Contains(tt.log, "amq.default"): // good events are still processed
				e.publishBodies("poison")
				e.publishBodies(orders("p", 3)...)
				s.waitLog("the broker refuses a dead letter", tt.log, "user's permissions")
				s.waitLogs(3, "msg=processed")
				s.stop()
				eventually(t, "the poison is still there", func() error {
					if e.depth("orders-queue") != 1 {
						return errNotYet
					}
					return nil
				})
			default:
				s.wantExit(1)
				s.waitLog("level=ERROR", tt.log, "user's permissions")
			}
			s.wantNoSecrets("s3cret")
		})
	}
}

// A service that has consumed waits when its access to the broker is withdrawn, logs a
// hint, and continues when the access is restored. A service that has never consumed gives
// up.
func TestBrokerAccessWithdrawn(t *testing.T) {
	t.Parallel() // it shares nothing
	vhost := newVhost(t)
	broker(t, addUser(vhost), permit(vhost, ".*", ".*", ".*"))
	e := newBrokerEnv(t, vhost, "orders")
	// The broker takes 3 s to refuse a password.
	wrong := e.start("orders", "LOG_LEVEL=debug", "AMQP_URL="+strings.Replace(e.amqpURL, "s3cret", "wr0ng", 1))
	way := e.proxyBroker()
	s := e.start("orders", "LOG_LEVEL=debug")
	e.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLog("msg=dead-lettered")
	for i, tt := range []struct {
		withdraw, giveBack, says string
	}{
		{setPassword(vhost, "0ther"), setPassword(vhost, "s3cret"), "Login was refused"},
		{permit(vhost, "", "", ""), permit(vhost, ".*", ".*", ".*"), "refused for user"},
	} {
		broker(t, tt.withdraw)
		way.cut()
		way.reconnect()
		s.waitLog("not consuming", tt.says, "check the user, the password and the virtual host in AMQP_URL, and the user's permissions")
		s.waitLogs(6, "connecting again", tt.says)
		s.alive()
		broker(t, tt.giveBack)
		s.waitLogs(i+2, "msg=consuming")
		e.publishBodies("poison")
		s.waitLogs(i+2, "msg=dead-lettered")
	}
	s.stop()
	wrong.wantExit(1)
	wrong.waitLog("level=ERROR", "refused 5 times in a row", "the password", "AMQP_URL")
	s.wantNoSecrets("s3cret", "0ther")
	wrong.wantNoSecrets("s3cret", "wr0ng")
}

// newBrokerEnv returns an env without etcd in a virtual host of the shared broker. Its
// services log in as the user that addUser makes.
func newBrokerEnv(t *testing.T, vhost, role string) *env {
	t.Helper()
	direct := shared.rabbit.URL() + vhost
	e := &env{
		t: t, directAMQP: direct, amqpURL: strings.Replace(direct, "guest:guest", "user-"+vhost+":s3cret", 1),
		etcdEndpoints: "127.0.0.1:1", statsd: newStatsd(t),
	}
	e.topology(role)
	return e
}

// broker evaluates Erlang expressions on the shared broker. One call replaces several
// calls of rabbitmqctl add_user, change_password or set_permissions, each of which would
// take a second.
func broker(t *testing.T, erlang ...string) {
	t.Helper()
	if _, err := shared.rabbit.Ctl(context.WithoutCancel(t.Context()), "eval", strings.Join(erlang, ", ")+"."); err != nil {
		t.Fatal(err)
	}
}

func addUser(vhost string) string {
	return fmt.Sprintf(`rabbit_auth_backend_internal:add_user(<<"user-%s">>, <<"s3cret">>, <<"test">>)`, vhost)
}

func setPassword(vhost, password string) string {
	return fmt.Sprintf(`rabbit_auth_backend_internal:change_password(<<"user-%s">>, <<%q>>, <<"test">>)`, vhost, password)
}

func permit(vhost, configure, write, read string) string {
	return fmt.Sprintf(`rabbit_auth_backend_internal:set_permissions(<<"user-%s">>, <<%q>>, <<%q>>, <<%q>>, <<%q>>, <<"test">>)`, vhost, vhost, configure, write, read)
}
