package e2e

import "testing"

// A service that consumes without claiming ids, and one of another broker that shares the ids,
// are warned of. A replica counts as one consumer, although it has replaced its own to hold more.
func TestPeers(t *testing.T) {
	e, _ := newBroker(t)
	e.etcdEndpoints = shared.etcd.Endpoint()
	vars := []string{"ENABLE_ETCD=true", "ETCD_PREFIX=/peers/", "CLAIM_TTL=2s", "LOG_LEVEL=debug"}
	classic, quorum := e.start("orders", vars...), e.start("notify", append(vars, "QUEUE_TYPE=quorum")...)
	quorum.waitLog("msg=consuming")
	e.publishBodies(orders("fast", 1000)...)
	classic.waitLog("holding deliveries", "level=1000")
	quorum.waitLog("holding deliveries", "level=1000")
	e.start("orders")
	e.start("notify", append(vars, "AMQP_URL=amqp://guest:guest@127.0.0.1:1/")...)
	classic.waitLog("level=WARN", "more consumers than", "consumers=2 sessions=1", "ENABLE_ETCD")
	quorum.waitLog("level=WARN", "more sessions in etcd", "consumers=1 sessions=2", "ETCD_PREFIX")
}
