package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// Both servers use TLS and require client certificates. When a certificate is wrong, the
// log names the reason and the variables to check, and the service waits, as for any
// server that is unreachable.
func TestTLS(t *testing.T) {
	t.Parallel() // it shares nothing
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.issue("good", time.Now().Add(time.Hour))
	broker := ours.issue("broker", time.Now().Add(time.Hour))
	expired := ours.issue("expired", time.Now().Add(-time.Hour))
	foreign := theirs.issue("foreign", time.Now().Add(time.Hour))

	rabbit := startRabbit(t, stack.RabbitOptions{Cert: broker.cert, Key: broker.key, CACert: ours.file})
	etcd := func(p pair) string {
		return startEtcds(t, 1, stack.EtcdOptions{Cert: p.cert, Key: p.key, CACert: ours.file})[0].Endpoint()
	}
	e := &env{t: t, amqpURL: rabbit.TLSURL(), directAMQP: rabbit.URL(), etcdEndpoints: etcd(good), statsd: newStatsd(t)}
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
		"etcd: expired certificate":                {append(vars(ours.file, good), "ETCD_ENDPOINTS="+etcd(expired)), []string{"etcd is unreachable", "expired", etcdAdvice}},
		"etcd: certificate of another authority":   {vars(ours.file, foreign), []string{"etcd is unreachable", "tls: ", etcdAdvice}},
		"broker: another authority":                {append(vars(theirs.file, good), plain...), []string{"not consuming", "unknown authority", amqpAdvice}},
		"broker: expired certificate":              {append(vars(ours.file, expired), plain...), []string{"not consuming", "expired", amqpAdvice}},
		"broker: certificate of another authority": {append(vars(ours.file, foreign), plain...), []string{"not consuming", "tls: ", amqpAdvice}},
		"broker: no certificate":                   {append(plain, "AMQP_CACERT="+ours.file), []string{"not consuming", "certificate required", amqpAdvice}},
		"broker: no TLS where there must be": {
			append(plain, "AMQP_URL=amqp"+strings.TrimPrefix(rabbit.TLSURL(), "amqps")), []string{"not consuming", "must begin with amqps://"}},
		"broker: TLS where there is none": {
			append(plain, "AMQP_CACERT="+ours.file, "AMQP_URL=amqps"+strings.TrimPrefix(rabbit.URL(), "amqp")), []string{"not consuming", amqpAdvice, "port in AMQP_URL"}},
	}
	t.Run("wrong", func(t *testing.T) {
		for name, tt := range bad {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := (&env{t: t, amqpURL: e.amqpURL, etcdEndpoints: e.etcdEndpoints, statsd: e.statsd}).start("orders", tt.vars...)
				t.Log(s.waitLog(tt.want...))
				s.alive()
				s.stop()
				s.wantNoSecrets("s3cret", good.secret(t), foreign.secret(t))
				s.wantLines(0, "msg=consuming")
			})
		}
	})

	// The broker's own certificate expires and is renewed. The service waits.
	renew := func(until time.Time) {
		t.Helper()
		ours.issue("broker", until) // overwrites the files
		_, err := rabbit.Ctl(deadline(t), "eval", "ssl:clear_pem_cache().")
		must(t, err)
	}
	renew(time.Now().Add(-time.Minute))
	s = e.start("orders", append(vars(ours.file, good), "LOG_LEVEL=debug")...)
	t.Log(s.waitLog("not consuming", "certificate has expired", amqpAdvice))
	s.waitLogs(6, "connecting again", "certificate has expired") // some seconds; the errors differ in the time, and count as the same
	s.wantLines(1, "level=WARN")
	s.alive()
	renew(time.Now().Add(time.Hour))
	s.waitLog("msg=consuming")
	s.waitLog("cache warmed", "ids=3")
	s.stop()
	s.wantNoSecrets(good.secret(t))

	// The service's own certificate expires and is renewed in the same files. The service
	// uses the new one for both servers without a restart.
	client := ours.issue("client", time.Now().Add(-time.Minute))
	toEtcd, toBroker := e.start("orders", vars(ours.file, client)...), e.start("notify", append(vars(ours.file, client), plain...)...)
	toEtcd.waitLog("etcd is unreachable")
	toBroker.waitLog("not consuming", "expired")
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
