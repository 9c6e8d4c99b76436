package e2e

import "testing"

// A service that consumes without claiming ids, and one of another broker that shares the ids,
// are warned of.
func TestPeers(t *testing.T) {
	t.Parallel()
	amqpURL := shared.rabbit.URL() + newVhost(t)
	e := &env{t: t, amqpURL: amqpURL, directAMQP: amqpURL, etcdEndpoints: shared.etcd.Endpoint(), statsd: newStatsd(t)}
	vars := []string{"ENABLE_ETCD=true", "ETCD_PREFIX=/peers/", "CLAIM_TTL=2s"}
	orders, notify := e.start("orders", vars...), e.start("notify", vars...)
	e.start("orders")
	e.start("notify", append(vars, "AMQP_URL=amqp://guest:guest@127.0.0.1:1/")...)
	orders.waitLog("level=WARN", "more consumers than", "consumers=2 sessions=1", "ENABLE_ETCD")
	notify.waitLog("level=WARN", "more sessions in etcd", "consumers=1 sessions=2", "ETCD_PREFIX")
}
