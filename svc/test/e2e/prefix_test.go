package e2e

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Two virtual hosts of one broker share no ids, although they share an etcd, unless they have
// the same ETCD_PREFIX.
func TestVirtualHostsShareNoIDs(t *testing.T) {
	const ids = 20
	vhost := newVhost(t)
	prod, staging := newEnv(t), newEnvOn(t, shared.rabbit.URL()+vhost, shared.etcd)
	for prefix, e := range map[string]*env{"/service/orders/": prod, "/" + vhost + "/service/orders/": staging} {
		e.topology("orders")
		e.publishBodies(orders("o", ids)...)
		s := e.start("orders", "ENABLE_ETCD=true", "ETCD_PREFIX=")
		s.waitLogs(ids, "msg=processed")
		s.stop()
		if resp, err := e.etcd.Get(deadline(t), prefix, clientv3.WithPrefix()); err != nil || resp.Count == 0 {
			t.Errorf("no key begins with %s, %v", prefix, err)
		}
	}
	s := staging.start("orders", "ENABLE_ETCD=true", "ETCD_PREFIX=/service/")
	staging.publishBodies(orders("o", ids)...)
	s.waitLogs(ids, "msg=skipped")
	s.stop()
}
