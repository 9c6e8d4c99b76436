package e2e

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A stop is in time before the service has connected to anything.
func TestStopBeforeTheFirstConnection(t *testing.T) {
	t.Parallel()
	const noBroker, silentBroker, etcd = "AMQP_URL=amqp://127.0.0.1:1/", "AMQP_URL=amqp://SILENT/", "ENABLE_ETCD=true"
	const noEtcd, silentEtcd, user, password = "ETCD_ENDPOINTS=127.0.0.1:1", "ETCD_ENDPOINTS=SILENT", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"
	tests := map[string]struct {
		vars []string // SILENT stands for a listener that never answers
		log  string   // the log line before the stop; empty: stop after a connection to the silent listener
	}{
		"no broker":              {[]string{noBroker}, "not consuming"},
		"no broker, etcd":        {[]string{noBroker, etcd}, "not consuming"},
		"broker without a host":  {[]string{"AMQP_URL=amqp://nowhere.invalid/"}, "not consuming"},
		"silent broker":          {[]string{silentBroker}, ""},
		"silent broker, etcd":    {[]string{silentBroker, etcd}, ""},
		"no etcd":                {[]string{noEtcd, etcd}, "etcd is unreachable"},
		"etcd without a host":    {[]string{"ETCD_ENDPOINTS=nowhere.invalid:2379", etcd}, "etcd is unreachable"},
		"silent etcd":            {[]string{silentEtcd, etcd}, ""},
		"no etcd with users":     {[]string{noEtcd, etcd, user, password}, "msg=starting"},
		"silent etcd with users": {[]string{silentEtcd, etcd, user, password}, ""},
		"nothing at all":         {[]string{noBroker, noEtcd, etcd, "STATSD_ADDR=nowhere.invalid:8125"}, "etcd is unreachable"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it shares nothing that it changes, and does little
			silent, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			must(t, err)
			defer silent.Close()
			e := &env{t: t, amqpURL: shared.rabbit.URL(), etcdEndpoints: shared.etcd.Endpoint(), statsd: newStatsd(t)}
			vars := strings.ReplaceAll(strings.Join(tt.vars, " "), "SILENT", silent.Addr().String())
			s := e.start("orders", append(strings.Fields(vars), "SHUTDOWN_TIMEOUT="+shutdown.String())...)
			if tt.log != "" {
				s.waitLog(tt.log)
			} else {
				silent.SetDeadline(time.Now().Add(maxWait))
				conn, err := silent.Accept() // the kernel accepts the others
				must(t, err)
				defer conn.Close()
			}
			t.Log("stopped in", s.stopWithin(syscall.SIGINT, shutdown).Round(time.Millisecond))
			s.wantLines(0, "msg=consuming")
		})
	}
}

// A stop during the warm-up is in time, even if etcd no longer answers.
func TestStopDuringWarmup(t *testing.T) {
	b := newProxiedEnv(t)
	b.must(fillRecords(deadline(t), b.etcd, 32000, 1)) // seven pages
	b.toEtcd.delay(900)                                // each page
	for _, frozen := range []bool{false, true} {
		s := b.start("orders", "ENABLE_ETCD=true", "SHUTDOWN_TIMEOUT="+shutdown.String())
		s.waitLog(`msg="reading the processed ids"`) // logged when the warm-up takes long
		if frozen {
			b.must(b.etcdServer.Pause())
		}
		t.Log("stopped in", s.stopWithin(syscall.SIGTERM, shutdown).Round(time.Millisecond))
		s.wantLines(0, "cache warmed")
		s.wantLines(0, "msg=consuming")
	}
}
