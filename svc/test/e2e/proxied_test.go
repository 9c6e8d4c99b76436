package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// proxiedEnv is an env with breakable connections to its servers. It has a virtual host
// of its own on the shared broker, behind a proxy, and an etcd of its own, which tests
// can freeze.
type proxiedEnv struct {
	*env
	etcdServer       *stack.Etcd
	toRabbit, toEtcd *proxy
}

func newProxiedEnv(t *testing.T) *proxiedEnv {
	t.Helper()
	return newProxiedEnvWith(t, stack.EtcdOptions{})
}

func newProxiedEnvWith(t *testing.T, o stack.EtcdOptions) *proxiedEnv {
	t.Helper()
	t.Parallel() // it shares nothing
	etcd := startEtcds(t, 1, o)[0]
	b := &proxiedEnv{env: newEnvOn(t, shared.rabbit.URL()+newVhost(t), etcd), etcdServer: etcd}
	b.toRabbit, b.toEtcd = b.proxyBroker(), newProxy(t, etcd.Endpoint())
	b.etcdEndpoints = b.toEtcd.Listen
	b.topology("orders")
	return b
}

var vhosts struct {
	sync.Mutex
	made int
	free []string
}

// newVhost returns an unused virtual host. It makes a dozen at a time, because each
// call of rabbitmqctl takes a second.
func newVhost(t testing.TB) string {
	t.Helper()
	vhosts.Lock()
	defer vhosts.Unlock()
	if len(vhosts.free) == 0 {
		var erlang strings.Builder
		for range 12 {
			vhosts.made++
			name := fmt.Sprint("test", vhosts.made)
			vhosts.free = append(vhosts.free, name)
			fmt.Fprintf(&erlang, "rabbit_vhost:add(<<%q>>, <<\"test\">>), "+
				"rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<%q>>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>), ", name, name)
		}
		if _, err := shared.rabbit.Ctl(t.Context(), "eval", erlang.String()+"ok."); err != nil {
			t.Fatal(err)
		}
	}
	last := len(vhosts.free) - 1
	name := vhosts.free[last]
	vhosts.free = vhosts.free[:last]
	return name
}
