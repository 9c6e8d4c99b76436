package e2e

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// A stop is in time before the service has connected to anything.
func TestStopBeforeTheFirstConnection(t *testing.T) {
	t.Parallel()
	const unusedAddr = "127.0.0.1:1"
	tests := map[string]struct {
		vars   []string
		silent string // the variable that gets the address of a silent listener
		log    string // the log line before the stop; empty: stop after a connection to the silent listener
	}{
		"no broker":             {[]string{"AMQP_URL=amqp://" + unusedAddr + "/"}, "", "not consuming"},
		"no broker, etcd":       {[]string{"AMQP_URL=amqp://" + unusedAddr + "/", "ENABLE_ETCD=true"}, "", "not consuming"},
		"broker without a host": {[]string{"AMQP_URL=amqp://nowhere.invalid/"}, "", "not consuming"},
		"silent broker":         {nil, "AMQP_URL", ""},
		"silent broker, etcd":   {[]string{"ENABLE_ETCD=true"}, "AMQP_URL", ""},
		"no etcd":               {[]string{"ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true"}, "", "etcd is unreachable"},
		"etcd without a host":   {[]string{"ETCD_ENDPOINTS=nowhere.invalid:2379", "ENABLE_ETCD=true"}, "", "etcd is unreachable"},
		"silent etcd":           {[]string{"ENABLE_ETCD=true"}, "ETCD_ENDPOINTS", ""},
		"no etcd with users":    {[]string{"ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"}, "", "msg=starting"},
		"silent etcd with users": {
			[]string{"ENABLE_ETCD=true", "ETCD_USERNAME=u", "ETCD_PASSWORD=p"}, "ETCD_ENDPOINTS", ""},
		"nothing at all": {[]string{"AMQP_URL=amqp://" + unusedAddr + "/", "ETCD_ENDPOINTS=" + unusedAddr, "ENABLE_ETCD=true", "STATSD_ADDR=nowhere.invalid:8125"}, "", "etcd is unreachable"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it shares nothing that it changes, and does little
			vars := tt.vars
			silence := newSilence(t)
			if tt.silent != "" {
				addr := silence.Addr().String()
				if tt.silent == "AMQP_URL" {
					addr = "amqp://" + addr + "/"
				}
				vars = append(vars[:len(vars):len(vars)], tt.silent+"="+addr)
			}
			e := &env{t: t, amqpURL: shared.rabbit.URL(), etcdEndpoints: shared.etcd.Endpoint(), statsd: newStatsd(t)}
			s := e.start("orders", append([]string{"SHUTDOWN_TIMEOUT=" + shutdown.String()}, vars...)...)
			if tt.log != "" {
				s.waitLog(tt.log)
			} else {
				select {
				case <-silence.accepted:
				case <-time.After(maxWait):
					t.Fatal("the service does not connect")
				}
			}
			t.Log("stopped in", s.stopWithin(syscall.SIGINT, shutdown).Round(time.Millisecond))
			if n := s.log.count("msg=consuming"); n > 0 {
				t.Error("the service consumed")
			}
		})
	}
}

// A stop during the warm-up is in time.
func TestStopDuringWarmup(t *testing.T) {
	const ids = 32000 // seven pages
	b := newProxiedEnv(t)
	b.must(fillRecords(deadline(t), b.etcd, ids, 1))
	slowly := func(t *testing.T) string {
		p := newProxy(t, b.etcdServer.Endpoint())
		p.delay(900) // each page
		return p.Listen
	}
	t.Run("slow", func(t *testing.T) {
		s := b.start("orders", "ENABLE_ETCD=true", "ETCD_ENDPOINTS="+slowly(t), "SHUTDOWN_TIMEOUT="+shutdown.String())
		s.waitLog(`msg="reading the processed ids"`) // logged when the warm-up takes long
		t.Log("stopped in", s.stopWithin(syscall.SIGTERM, shutdown).Round(time.Millisecond))
		if s.log.count("cache warmed")+s.log.count("msg=consuming") > 0 {
			t.Error("the warm-up was over before the stop")
		}
	})
	t.Run("frozen", func(t *testing.T) {
		s := b.start("orders", "ENABLE_ETCD=true", "ETCD_ENDPOINTS="+slowly(t), "SHUTDOWN_TIMEOUT="+shutdown.String(), "HEALTH_ADDR=127.0.0.1:0")
		s.waitReady("broker", "consumer", "cache") // etcd has answered
		b.etcdServer.Pause()
		t.Log("stopped in", s.stopWithin(syscall.SIGINT, shutdown).Round(time.Millisecond))
		b.etcdServer.Resume()
	})
	// Without a stop the warm-up reads all records.
	s := b.start("orders", "ENABLE_ETCD=true")
	s.waitLog(`msg="cache warmed"`, fmt.Sprint("ids=", ids))
	s.stop()
}

// silence accepts connections and never sends anything.
type silence struct {
	net.Listener
	accepted chan struct{} // closed at the first connection
}

func newSilence(t *testing.T) *silence {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &silence{l, make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			if len(conns) == 0 {
				close(s.accepted)
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return s
}
