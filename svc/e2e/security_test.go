package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Both servers with TLS, and demanding certificates of their clients. What is
// wrong with a certificate is said in a line that tells which variables to look
// at; the service waits meanwhile, as for any server that is not there yet.
func TestTLS(t *testing.T) {
	t.Parallel() // it shares nothing
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.issue("good", time.Now().Add(time.Hour))
	expired := ours.issue("expired", time.Now().Add(-time.Hour))
	foreign := theirs.issue("foreign", time.Now().Add(time.Hour))

	rabbit, err := stack.StartRabbit(ctx, filepath.Join(t.TempDir(), "rabbit"), stack.RabbitOptions{Cert: good.cert, Key: good.key, CACert: ours.file})
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
	e := &env{t: t, amqpURL: rabbit.TLSURL(), directAMQP: rabbit.URL(), etcdAt: etcd.Endpoint(), statsd: statsd}
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
	e.publishBodies("poison") // the dead letters' connection, too
	s.waitLogs(3, "msg=processed")
	s.waitLog("msg=dead-lettered")
	e.wantAllDone("orders", 3)
	s.stop()

	etcdAdvice, amqpAdvice := "check ETCD_CACERT, ETCD_CERT and ETCD_KEY", "check AMQP_CACERT, AMQP_CERT and AMQP_KEY"
	plain := []string{"ENABLE_ETCD=false"}
	for name, tt := range map[string]struct {
		vars []string
		want []string // in one line
	}{
		"etcd: another authority":              {vars(theirs.file, good), []string{"etcd is away", "unknown authority", etcdAdvice}},
		"etcd: expired certificate":            {append(vars(ours.file, good), "ETCD_ENDPOINTS="+old.Endpoint()), []string{"etcd is away", "expired", etcdAdvice}},
		"etcd: certificate of somebody else":   {vars(ours.file, foreign), []string{"etcd is away", "tls: ", etcdAdvice}},
		"broker: another authority":            {append(vars(theirs.file, good), plain...), []string{"no connection to the broker", "unknown authority", amqpAdvice}},
		"broker: expired certificate":          {append(vars(ours.file, expired), plain...), []string{"no connection to the broker", "expired", amqpAdvice}},
		"broker: certificate of somebody else": {append(vars(ours.file, foreign), plain...), []string{"no connection to the broker", "tls: ", amqpAdvice}},
		"broker: no certificate":               {append(plain, "AMQP_CACERT="+ours.file), []string{"no connection to the broker", "certificate required", amqpAdvice}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := (&env{t: t, amqpURL: e.amqpURL, etcdAt: e.etcdAt, statsd: statsd}).start("orders", tt.vars...)
			t.Log(s.waitLog(tt.want...))
			s.alive()
			s.stop()
			if strings.Contains(s.log.String(), "PRIVATE KEY") || s.log.count("msg=consuming") > 0 {
				t.Errorf("it consumed, or shows a key:\n%s", s.log.String())
			}
		})
	}
}

// The rights that the README names are enough, and none of them is too many.
func TestBrokerPermissions(t *testing.T) {
	const configure, write, read = `^(events|orders-queue(\.dead)?)$`, `^(orders-queue|amq\.default)$`, `^(events|orders-queue)$`
	for name, tt := range map[string]struct{ configure, write, read, log string }{
		"enough":                {configure, write, read, ""},
		"no exchange":           {`^orders-queue(\.dead)?$`, write, read, "access to exchange 'events'"},
		"no dead queue":         {`^(events|orders-queue)$`, write, read, "access to queue 'orders-queue.dead'"},
		"no binding":            {configure, `^amq\.default$`, read, "access to queue 'orders-queue'"},
		"no reading of events":  {configure, write, `^orders-queue$`, "access to exchange 'events'"},
		"no consuming":          {configure, write, `^events$`, "access to queue 'orders-queue'"},
		"no letters to be dead": {configure, `^orders-queue$`, read, "access to exchange 'amq.default'"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBrinkWith(t, stack.EtcdOptions{})
			vhost := b.amqpURL[strings.LastIndex(b.amqpURL, "/")+1:]
			user := "orders-" + vhost
			for _, args := range [][]string{
				{"add_user", user, "s3cret"}, {"set_permissions", "-p", vhost, user, tt.configure, tt.write, tt.read},
			} {
				if _, err := shared.rabbit.Ctl(t.Context(), args...); err != nil {
					t.Fatal(err)
				}
			}
			s := b.start("orders", "LOG_LEVEL=debug", "AMQP_URL="+strings.Replace(b.amqpURL, "guest:guest", user+":s3cret", 1))
			switch {
			case tt.log == "":
				b.publishBodies(orders("p", 3)...)
				b.publishBodies("poison")
				s.waitLogs(3, "msg=processed")
				s.waitLog("msg=dead-lettered")
				s.stop()
			case strings.Contains(tt.log, "amq.default"): // the good events go on
				b.publishBodies("poison")
				b.publishBodies(orders("p", 3)...)
				s.waitLog("the dead queue is away", tt.log, "user's permissions")
				s.waitLogs(3, "msg=processed")
				s.stop()
				eventually(t, "the poison is still there", func() error {
					if b.depth("orders-queue") != 1 {
						return errNotYet
					}
					return nil
				})
			default:
				s.wantExit(1)
				s.waitLog("level=ERROR", tt.log, "user's permissions")
			}
			if strings.Contains(s.log.String(), "s3cret") {
				t.Errorf("the password is in the log:\n%s", s.log.String())
			}
		})
	}
}

// etcd with users: one who may read and write what is below the service's
// prefix, and nothing else.
func TestEtcdPermissions(t *testing.T) {
	b := newBrink(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.etcd.UserAdd(ctx, "root", "r00t"))
	must(b.etcd.UserGrantRole(ctx, "root", "root"))
	for _, role := range []string{"orders", "notify"} {
		must(b.etcd.UserAdd(ctx, role, "s3cret"))
		must(b.etcd.RoleAdd(ctx, role))
		prefix := "/service/" + role + "/"
		must(b.etcd.RoleGrantPermission(ctx, role, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite)))
		must(b.etcd.UserGrantRole(ctx, role, role))
	}
	must(b.etcd.AuthEnable(ctx))
	release := make(chan struct{})
	sink := newSink(t, func(p post) int {
		switch {
		case p.id == "bad":
			return http.StatusBadRequest
		case strings.HasPrefix(p.id, "slow"):
			<-release
		}
		return http.StatusOK
	})
	vars := []string{"ENABLE_ETCD=true", "LOG_LEVEL=debug", "WEBHOOK_URL=" + sink.URL, "HEALTH_ADDR=127.0.0.1:0", "CLAIM_TTL=2s", "ETCD_PASSWORD=s3cret"}

	// Claims, completions, a release, leases that live for longer than they
	// last, duplicates, and after a restart the warm-up.
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
	stranger.waitLog("etcd is away", "permission denied", "the etcd user needs read and write access to the prefix /service/<role>/")
	stranger.waitReady("broker", "consumer", "etcd", "cache")
	stranger.stop()

	nobody := b.start("orders", append(vars, "ETCD_USERNAME=orders", "ETCD_PASSWORD=wr0ng")...)
	nobody.wantExit(1)
	nobody.waitLog("level=ERROR", `log in to etcd as \"orders\"`, "check ETCD_USERNAME and ETCD_PASSWORD")

	anonymous := b.start("orders", "ENABLE_ETCD=true")
	anonymous.waitLog("etcd is away", "set ETCD_USERNAME and ETCD_PASSWORD")
	anonymous.stop()
	for _, s := range []*service{s, next, stranger, nobody, anonymous} {
		for _, secret := range []string{"s3cret", "wr0ng", "r00t"} {
			if strings.Contains(s.log.String(), secret) {
				t.Errorf("a password is in the log of %s", s.name)
			}
		}
	}
}

// A stranger who may publish cannot fill the log.
func TestLogLinesAreBounded(t *testing.T) {
	b := newBrink(t)
	sink := newSink(t, func(post) int { return http.StatusBadRequest })
	s := b.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL="+sink.URL)
	long := strings.Repeat("x", 1<<20)
	b.publishBodies(
		fmt.Sprintf(`{"type":%q,"id":"1"}`, long), // ignored
		fmt.Sprintf(`{"type":"new_order","id":%q}`, long),
		fmt.Sprintf(`{"type":"new_order",%q:1}`, long),
		long,
		fmt.Sprintf(`{"type":"new_order","id":%q}`, strings.Repeat("\x01", 512)),
	)
	s.waitLog("msg=ignored")
	s.waitLogs(4, "msg=dead-lettered")
	s.stop()
	for line := range strings.Lines(s.log.String()) {
		if len(line) > 8<<10 {
			t.Errorf("a line of %d bytes: %.300s…", len(line), line)
		}
	}
}
