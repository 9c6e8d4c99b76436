package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Both servers use TLS and require client certificates. When a certificate is wrong, the
// log names the reason and the variables to check, and the service waits, as for any
// server that is unreachable.
func TestTLS(t *testing.T) {
	t.Parallel() // it shares nothing
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.issue("good", time.Now().Add(time.Hour))
	broker := ours.issue("broker", time.Now().Add(time.Hour))
	expired := ours.issue("expired", time.Now().Add(-time.Hour))
	foreign := theirs.issue("foreign", time.Now().Add(time.Hour))

	rabbit, err := stack.StartRabbit(ctx, filepath.Join(t.TempDir(), "rabbit"), stack.RabbitOptions{Cert: broker.cert, Key: broker.key, CACert: ours.file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rabbit.Close() })
	startEtcd := func(p pair) *stack.Etcd {
		etcd, err := stack.StartEtcd(ctx, filepath.Join(t.TempDir(), "etcd"), stack.EtcdOptions{Cert: p.cert, Key: p.key, CACert: ours.file})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { etcd.Close() })
		return etcd
	}
	etcd, old := startEtcd(good), startEtcd(expired)
	statsd, err := stack.StartStatsd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { statsd.Close() })
	e := &env{t: t, amqpURL: rabbit.TLSURL(), directAMQP: rabbit.URL(), etcdEndpoints: etcd.Endpoint(), statsd: statsd}
	e.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}, TLS: ours.client(good), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.etcd.Close() })
	e.topology("orders")

	vars := func(ca string, p pair) []string {
		return []string{
			"ENABLE_ETCD=true", "LOG_LEVEL=debug", "AMQP_CACERT=" + ca, "AMQP_CERT=" + p.cert, "AMQP_KEY=" + p.key,
			"ETCD_CACERT=" + ca, "ETCD_CERT=" + p.cert, "ETCD_KEY=" + p.key,
		}
	}
	s := e.start("orders", append(vars(ours.file, good), "HEALTH_ADDR=127.0.0.1:0")...)
	s.waitReady()
	e.publishBodies(orders("tls", 3)...)
	e.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLogs(3, "msg=processed")
	s.waitLog("msg=dead-lettered")
	e.wantAllDone("orders", 3)
	s.stop()
	s.wantNoSecrets(good.secret(t))

	etcdAdvice, amqpAdvice := "check ETCD_CACERT, ETCD_CERT and ETCD_KEY", "check AMQP_CACERT, AMQP_CERT and AMQP_KEY"
	plain := []string{"ENABLE_ETCD=false"}
	bad := map[string]struct {
		vars []string
		want []string // parts of one line
	}{
		"etcd: another authority":                  {vars(theirs.file, good), []string{"etcd is unreachable", "unknown authority", etcdAdvice}},
		"etcd: another authority, users":           {append(vars(theirs.file, good), "ETCD_USERNAME=u", "ETCD_PASSWORD=s3cret"), []string{"etcd is unreachable", "unknown authority", etcdAdvice}},
		"etcd: expired certificate":                {append(vars(ours.file, good), "ETCD_ENDPOINTS="+old.Endpoint()), []string{"etcd is unreachable", "expired", etcdAdvice}},
		"etcd: certificate of another authority":   {vars(ours.file, foreign), []string{"etcd is unreachable", "tls: ", etcdAdvice}},
		"broker: another authority":                {append(vars(theirs.file, good), plain...), []string{"no connection to the broker", "unknown authority", amqpAdvice}},
		"broker: expired certificate":              {append(vars(ours.file, expired), plain...), []string{"no connection to the broker", "expired", amqpAdvice}},
		"broker: certificate of another authority": {append(vars(ours.file, foreign), plain...), []string{"no connection to the broker", "tls: ", amqpAdvice}},
		"broker: no certificate":                   {append(plain, "AMQP_CACERT="+ours.file), []string{"no connection to the broker", "certificate required", amqpAdvice}},
		"broker: no TLS where there must be": {
			append(plain, "AMQP_URL=amqp"+strings.TrimPrefix(rabbit.TLSURL(), "amqps")), []string{"no connection to the broker", "must begin with amqps://"}},
		"broker: TLS where there is none": {
			append(plain, "AMQP_CACERT="+ours.file, "AMQP_URL=amqps"+strings.TrimPrefix(rabbit.URL(), "amqp")), []string{"no connection to the broker", amqpAdvice, "port in AMQP_URL"}},
	}
	t.Run("wrong", func(t *testing.T) {
		for name, tt := range bad {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := (&env{t: t, amqpURL: e.amqpURL, etcdEndpoints: e.etcdEndpoints, statsd: statsd}).start("orders", tt.vars...)
				t.Log(s.waitLog(tt.want...))
				s.alive()
				s.stop()
				s.wantNoSecrets("s3cret", good.secret(t), foreign.secret(t))
				if s.log.count("msg=consuming") > 0 {
					t.Errorf("the service consumed:\n%s", s.log.String())
				}
			})
		}
	})

	// The broker's own certificate expires and is renewed. The service waits.
	renew := func(until time.Time) {
		t.Helper()
		ours.issue("broker", until) // overwrites the files
		// The parallel tests above may have used up the test's own deadline.
		ctx, cancel := context.WithTimeout(t.Context(), maxWait)
		defer cancel()
		if _, err := rabbit.Ctl(ctx, "eval", "ssl:clear_pem_cache()."); err != nil {
			t.Fatal(err)
		}
	}
	renew(time.Now().Add(-time.Minute))
	s = e.start("orders", vars(ours.file, good)...)
	t.Log(s.waitLog("no connection to the broker", "certificate has expired", amqpAdvice))
	s.alive()
	renew(time.Now().Add(time.Hour))
	s.waitLog("msg=consuming")
	s.stop()
	s.wantNoSecrets(good.secret(t))

	// The service's own certificate expires and is renewed in the same files. The service
	// uses the new one for both servers without a restart.
	client := ours.issue("client", time.Now().Add(-time.Minute))
	toEtcd, toBroker := e.start("orders", vars(ours.file, client)...), e.start("notify", append(vars(ours.file, client), plain...)...)
	toEtcd.waitLog("etcd is unreachable")
	toBroker.waitLog("no connection to the broker", "expired")
	ours.issue("client", time.Now().Add(time.Hour))
	for _, s := range []*service{toEtcd, toBroker} {
		s.waitLog("msg=consuming")
		s.stop()
	}
}

// wantNoSecrets checks that the log contains none of secrets.
func (s *service) wantNoSecrets(secrets ...string) {
	s.t.Helper()
	for _, secret := range secrets {
		if strings.Contains(s.log.String(), secret) {
			s.t.Errorf("%q is in the log of %s:\n%s", secret, s.name, s.log.String())
		}
	}
}

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
// hint with each attempt, and continues when the access is restored. A service that has
// never consumed gives up.
func TestBrokerAccessWithdrawn(t *testing.T) {
	t.Parallel() // it shares nothing
	vhost := newVhost(t)
	broker(t, addUser(vhost), permit(vhost, ".*", ".*", ".*"))
	e := newBrokerEnv(t, vhost, "orders")
	// The broker takes 3 s to refuse a password.
	wrong := e.start("orders", "LOG_LEVEL=debug", "AMQP_URL="+strings.Replace(e.amqpURL, "s3cret", "wr0ng", 1))
	way := newProxy(t, fmt.Sprintf("127.0.0.1:%d", shared.rabbit.Port()))
	s := e.start("orders", "LOG_LEVEL=debug", "AMQP_URL=amqp://user-"+vhost+":s3cret@"+way.Listen+"/"+vhost)
	e.publishBodies("poison") // opens the connection for dead letters, too
	s.waitLog("msg=dead-lettered")
	for i, tt := range []struct {
		withdraw, giveBack, says string
		lines                    int
	}{
		{setPassword(vhost, "0ther"), setPassword(vhost, "s3cret"), "Login was refused", 6},
		{permit(vhost, "", "", ""), permit(vhost, ".*", ".*", ".*"), "refused for user", 6},
	} {
		broker(t, tt.withdraw)
		way.cut()
		way.reconnect()
		s.waitLogs(tt.lines, "no connection to the broker", tt.says, "check the user, the password and the virtual host in AMQP_URL, and the user's permissions")
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
	statsd, err := stack.StartStatsd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { statsd.Close() })
	direct := shared.rabbit.URL() + vhost
	e := &env{
		t: t, directAMQP: direct, amqpURL: strings.Replace(direct, "guest:guest", "user-"+vhost+":s3cret", 1),
		etcdEndpoints: "127.0.0.1:1", statsd: statsd,
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

// quickLogins configures an etcd with cheap password checks. With the race detector a
// login would otherwise take a second of CPU, in which etcd renews no lease.
var quickLogins = stack.EtcdOptions{Config: map[string]any{"bcrypt-cost": 4}}

// demandUsers turns on authentication in etcd. Each role gets a user of the same name
// with the password s3cret, who may read and write only the keys under the role's
// prefix, as the README recommends. The test's own client is root from then on.
func (b *proxiedEnv) demandUsers(ctx context.Context, roles ...string) {
	b.t.Helper()
	must := func(_ any, err error) {
		b.t.Helper()
		b.must(err)
	}
	must(b.etcd.UserAdd(ctx, "root", "r00t"))
	must(b.etcd.UserGrantRole(ctx, "root", "root"))
	for _, role := range roles {
		must(b.etcd.UserAdd(ctx, role, "s3cret"))
		must(b.etcd.RoleAdd(ctx, role))
		prefix := "/service/" + role + "/"
		must(b.etcd.RoleGrantPermission(ctx, role, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite)))
		must(b.etcd.UserGrantRole(ctx, role, role))
	}
	must(b.etcd.AuthEnable(ctx))
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{b.etcdServer.Endpoint()}, Username: "root", Password: "r00t", Logger: zap.NewNop()})
	b.must(err)
	b.t.Cleanup(func() { root.Close() })
	b.etcd = root
}

// Read and write access to the keys under the service's prefix is sufficient in etcd. A
// service with other or no credentials waits or exits, with a hint.
func TestEtcdPermissions(t *testing.T) {
	b := newProxiedEnvWith(t, quickLogins)
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	b.demandUsers(ctx, "orders", "notify")
	b.wantHealthcheck(ctx)
	release := make(chan struct{})
	receiver := newReceiver(t, func(p post) int {
		switch {
		case p.ID == "bad":
			return http.StatusBadRequest
		case strings.HasPrefix(p.ID, "slow"):
			<-release
		}
		return http.StatusOK
	})
	vars := []string{"ENABLE_ETCD=true", "LOG_LEVEL=debug", "WEBHOOK_URL=" + receiver.URL, "HEALTH_ADDR=127.0.0.1:0", "CLAIM_TTL=2s", "ETCD_PASSWORD=s3cret"}

	// The service claims, completes and releases ids, renews its lease, skips duplicates,
	// and reads all records after a restart.
	s := b.start("orders", append(vars, "ETCD_USERNAME=orders")...)
	s.waitReady()
	b.publishBodies(append(orders("e", 20), orders("slow", 2)...)...)
	b.publishBodies(`{"type":"new_order","id":"bad"}`)
	s.waitLogs(20, "msg=processed")
	s.waitLog("msg=dead-lettered", "id=bad")
	<-time.After(3 * time.Second)
	close(release)
	s.waitLogs(22, "msg=processed")
	b.publishBodies(orders("e", 20)...)
	s.waitLogs(20, "msg=skipped")
	s.stop()
	if n := s.log.count("level=WARN") + s.log.count("level=ERROR"); n > 0 {
		t.Errorf("%d warnings:\n%s", n, s.log.tail(20))
	}
	next := b.start("orders", append(vars, "ETCD_USERNAME=orders")...)
	next.waitLog(`msg="cache warmed"`, "ids=22")
	next.stop()

	stranger := b.start("orders", append(vars, "ETCD_USERNAME=notify")...)
	stranger.waitLog("etcd refuses a call", "permission denied", "grant the etcd user read and write access to the prefix /service/<role>/")
	stranger.waitReady("broker", "consumer", "etcd", "cache")
	stranger.stop()

	wrongPassword := b.start("orders", append(vars, "ETCD_USERNAME=orders", "ETCD_PASSWORD=wr0ng")...)
	wrongPassword.wantExit(1)
	wrongPassword.waitLog("level=ERROR", `log in to etcd as \"orders\"`, "check ETCD_USERNAME and ETCD_PASSWORD")

	anonymous := b.start("orders", "ENABLE_ETCD=true")
	anonymous.waitLog("etcd refuses a call", "set ETCD_USERNAME and ETCD_PASSWORD")
	anonymous.stop()
	for _, s := range []*service{s, next, stranger, wrongPassword, anonymous} {
		s.wantNoSecrets("s3cret", "wr0ng", "r00t")
	}
}

// wantHealthcheck checks that the healthcheck in docker-compose.yaml works without a
// user. `etcdctl auth status` makes the call AuthStatus.
func (b *proxiedEnv) wantHealthcheck(ctx context.Context) {
	b.t.Helper()
	anonymous, err := clientv3.New(clientv3.Config{Endpoints: []string{b.etcdServer.Endpoint()}, Logger: zap.NewNop()})
	b.must(err)
	defer anonymous.Close()
	if status, err := anonymous.AuthStatus(ctx); err != nil || !status.Enabled {
		b.t.Errorf("the status of authentication: %v, %v", status, err)
	}
	if !strings.Contains(readFile(b.t, "../../docker-compose.yaml"), "test: [CMD, /usr/local/bin/etcdctl, --command-timeout=3s, auth, status]") {
		b.t.Error("docker-compose.yaml has another healthcheck for etcd")
	}
}

// A service whose access to etcd is withdrawn waits, logs a hint once, and continues when
// the access is restored.
func TestEtcdAccessWithdrawn(t *testing.T) {
	b := newProxiedEnvWith(t, quickLogins)
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	b.demandUsers(ctx, "orders")
	const prefix = "/service/orders/"
	end := clientv3.GetPrefixRangeEnd(prefix)

	s := b.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=debug", "ETCD_USERNAME=orders", "ETCD_PASSWORD=s3cret")
	b.publishBodies(orders("before", 2)...)
	s.waitLogs(2, "msg=processed")

	_, err := b.etcd.UserChangePassword(ctx, "orders", "0ther")
	b.must(err)
	b.publishBodies(orders("locked", 2)...)
	s.waitLog("etcd refuses a call", "check ETCD_USERNAME and ETCD_PASSWORD")
	s.alive()
	_, err = b.etcd.UserChangePassword(ctx, "orders", "s3cret")
	b.must(err)
	s.waitLogs(2, "msg=processed", "id=locked")

	_, err = b.etcd.RoleRevokePermission(ctx, "orders", prefix, end)
	b.must(err)
	b.publishBodies(orders("denied", 2)...)
	s.waitLog("etcd refuses a call", "permission denied", "grant the etcd user read and write access to the prefix /service/<role>/")
	<-time.After(3 * time.Second) // the call is retried, but not logged again
	_, err = b.etcd.RoleGrantPermission(ctx, "orders", prefix, end, clientv3.PermissionType(clientv3.PermReadWrite))
	b.must(err)
	s.waitLogs(2, "msg=processed", "id=denied")
	s.waitLogs(2, "etcd accepts calls again")
	s.stop()
	if refusals := s.log.count("etcd refuses a call"); refusals != 2 {
		t.Errorf("%d refusals are logged, want one of the password and one of the key:\n%s", refusals, s.log.tail(20))
	}
	s.wantNoSecrets("s3cret", "0ther", "r00t")
}

// An error about a bad value never shows its password.
func TestBadValuesShowNoPassword(t *testing.T) {
	t.Parallel() // it shares nothing
	for _, bad := range []string{
		"AMQP_URL=guest:s3cret@localhost:5672", // no scheme
		"AMQP_URL=amqp://u:s3,cret@localhost/", // a comma separates URLs
		"AMQP_URL=amqp://u:s3%cret@localhost/",
		"AMQP_URL=amqp://u:s3/cret@localhost/",
		"AMQP_URL=amqp://a:s3cret@localhost:x,amqp://b:s3cret@localhost:y",
		"AMQP_URL=amqp://a:s3@cret@localhost:x",
		"WEBHOOK_URL=u:s3cret@localhost/hook",
		"WEBHOOK_URL=ftp://u:s3cret@localhost/",
		"WEBHOOK_URL=localhost/hook?token=s3cret",
		"ETCD_ENDPOINTS=http://u:s3cret@localhost:2379",
		"ETCD_PASSWORD=s3cret", // without a user
	} {
		t.Run(bad, func(t *testing.T) {
			cmd := exec.Command(shared.bin)
			cmd.Env = []string{"SERVICE_NAME=orders", bad}
			s := startCommand(t, "bad", cmd)
			s.wantExit(2)
			name, _, _ := strings.Cut(bad, "=")
			s.waitLog("allowed is")
			if text := s.log.String(); !strings.Contains(text, name) || strings.Contains(text, "s3") || strings.Contains(text, "cret@") {
				t.Errorf("the log is:\n%s", text)
			}
		})
	}
}

// A publisher can neither fill the log nor forge lines in it.
func TestLogLinesAreBounded(t *testing.T) {
	for format, begin := range map[string]string{"text": "time=", "json": `{"time":`} {
		t.Run(format, func(t *testing.T) {
			b := newProxiedEnv(t)
			receiver := newReceiver(t, func(post) int { return http.StatusBadRequest })
			s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+receiver.URL, "LOG_FORMAT="+format)
			long := strings.Repeat("x", 1<<20)
			forged := `\nlevel=ERROR msg=forged`
			b.publishBodies(
				fmt.Sprintf(`{"type":%q,"id":"1"}`, long), // ignored
				fmt.Sprintf(`{"type":"%s","id":"%s"}`, strings.Repeat(`\u0001`, 1<<17), strings.Repeat(`\u0001`, 512)),
				fmt.Sprintf(`{"type":"%s","id":"%s"}`, forged, forged),
				fmt.Sprintf(`{"type":"new_order","id":%q}`, long),
				fmt.Sprintf(`{"type":"new_order",%q:1}`, long),
				long,
				fmt.Sprintf(`{"type":"new_order","id":"%s"}`, strings.Repeat(`\u0001`, 512)),
				fmt.Sprintf(`{"type":"new_order","id":"%s"}`, forged),
			)
			s.waitLogs(3, "ignored")
			s.waitLogs(5, "dead-lettered")
			s.stop()
			for line := range strings.Lines(s.log.String()) {
				if len(line) > 10<<10 || !strings.HasPrefix(line, begin) {
					t.Errorf("a line is too long (%d bytes) or forged: %.300s…", len(line), line)
				}
			}
		})
	}
}

// AMQP has one frame for all headers of a message. Even if a publisher has filled it, the
// dead letter has the headers with the reason, and keeps the other headers that fit.
func TestDeadLetterOfHugeHeaders(t *testing.T) {
	b := newProxiedEnv(t)
	s := b.start("orders", "ENABLE_ETCD=true")
	s.waitLog("msg=consuming")
	huge := plumber("not an event")
	huge.Headers = amqp.Table{"huge": strings.Repeat("h", 130_900), "trace": "t1"}
	b.publish(huge)
	b.publishBodies(orders("behind", 3)...)
	s.waitLogs(3, "msg=processed")
	s.waitLog("msg=dead-lettered")
	s.stop()
	letters := b.deadLetters("orders")
	if len(letters) != 1 || b.depth("orders-queue") != 0 {
		t.Fatalf("%d dead letters, %d events are left", len(letters), b.depth("orders-queue"))
	}
	got := letters[0].Headers
	if got["huge"] != nil || got["trace"] != "t1" || got["x-reason"] != "malformed" || got["x-error"] == nil || got["x-dropped-headers"] != int32(1) ||
		string(letters[0].Body) != "not an event" || letters[0].AppId != "plumber" {
		t.Errorf("the dead letter is %.1000v", letters[0])
	}
	if n := s.log.count("level=WARN"); n > 0 {
		t.Errorf("%d warnings", n)
	}
}
