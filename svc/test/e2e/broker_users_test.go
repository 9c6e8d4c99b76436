package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The permissions in the README are sufficient in a virtual host without exchanges and
// queues, and each of them is necessary for what the table says. Where all of these exist,
// the right to read the queue is enough to process events.
func TestBrokerPermissions(t *testing.T) {
	t.Parallel() // it shares nothing
	const configure, write, read = `^(events|orders-queue(\.dead)?)$`, `^(orders-queue|amq\.default)$`, `^(events|orders-queue)$`
	const empty, bound = false, true
	const bind = "the user may not bind the queue"
	others := strings.NewReplacer("orders", "notify")
	tests := map[string]struct {
		role                   string
		found                  bool // empty: nothing; bound: the exchange and the queue
		configure, write, read string
		says                   string // besides a hint
		exit                   int
		deadLetter             bool // it can be stored
	}{
		"enough":                {"orders", empty, configure, write, read, "", 0, true},
		"enough for notify":     {"notify", empty, others.Replace(configure), others.Replace(write), others.Replace(read), "", 0, true},
		"no exchange":           {"orders", empty, `^orders-queue(\.dead)?$`, write, read, "access to exchange 'events'", 1, false},
		"no queue":              {"orders", empty, `^(events|orders-queue\.dead)$`, write, read, "access to queue 'orders-queue'", 1, false},
		"no dead queue":         {"orders", bound, `^(events|orders-queue)$`, write, read, "orders-queue.dead", 0, false},
		"no binding":            {"orders", bound, configure, `^amq\.default$`, read, bind, 0, true},
		"no reading of events":  {"orders", bound, configure, write, `^orders-queue$`, bind, 0, true},
		"only reading":          {"orders", bound, `^$`, `^$`, `^orders-queue$`, bind, 0, false},
		"no consuming":          {"orders", bound, configure, write, `^events$`, "access to queue 'orders-queue'", 1, false},
		"no letters to be dead": {"orders", bound, configure, `^orders-queue$`, read, "access to exchange 'amq.default'", 0, false},
		"of the other role":     {"notify", bound, configure, write, read, "access to queue 'notify-queue'", 1, false},
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
			if !tt.found {
				e.deleteQueue(tt.role + "-queue")
				e.deleteExchange()
			}
			s := e.start(tt.role, "LOG_LEVEL=debug")
			defer s.wantNoSecrets("s3cret")
			if tt.exit != 0 {
				s.wantExit(tt.exit)
				s.waitLog("level=ERROR", tt.says, "user's permissions")
				return
			}
			s.waitLog("msg=consuming")
			e.publishBodies("poison")
			e.publishBodies(orders("p", 3)...)
			s.waitLogs(3, "msg=processed")
			if tt.says != "" {
				s.waitLog("level=WARN", tt.says, "user's permissions")
			}
			if tt.deadLetter {
				s.waitLog("msg=dead-lettered")
			}
			<-time.After(4 * time.Second) // the topology is checked again
			s.stop()
			s.wantLines(min(len(tt.says), 1), "level=WARN", tt.says)
			if !tt.deadLetter {
				e.waitDepth(tt.role+"-queue", 1)
			}
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
	for i, tt := range []struct{ withdraw, giveBack, says string }{
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
