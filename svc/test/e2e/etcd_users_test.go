package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Read and write access to the keys under the service's prefix is sufficient in etcd. A
// service with other or no credentials waits or exits, with a hint.
func TestEtcdPermissions(t *testing.T) {
	b := newProxiedEnvWith(t, quickLogins)
	ctx := deadline(t)
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
	s.wantLines(0, "level=WARN")
	s.wantLines(0, "level=ERROR")
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

// With authentication in etcd every call carries a token. The service renews tokens that have
// expired, or that a restart of etcd has invalidated. When its password is changed in etcd it
// waits, logs a hint once, and continues when it is changed back.
func TestEtcdLogins(t *testing.T) {
	b := newProxiedEnvWith(t, stack.EtcdOptions{Config: map[string]any{"auth-token-ttl": 1, "bcrypt-cost": 4}})
	ctx := deadline(t)
	b.demandUsers(ctx, "orders")
	s := b.start("orders", "ENABLE_ETCD=true", "LOG_LEVEL=debug", "CLAIM_TTL=2s", "ETCD_USERNAME=orders", "ETCD_PASSWORD=s3cret")
	s.waitLog("msg=consuming")
	<-time.After(4 * time.Second) // longer than the life of a token, and of a lease without renewals
	b.publishBodies(orders("idle", 20)...)
	s.waitLogs(20, "msg=processed", "id=idle")
	s.wantLines(0, "level=WARN")
	s.wantLines(0, "level=ERROR")
	b.must(b.etcdServer.Kill())
	b.publishBodies(orders("down", 20)...)
	b.must(b.etcdServer.Start(ctx))
	back := time.Now()
	s.waitLogs(20, "msg=processed", "id=down")
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("the work continued only %v after etcd became reachable", took)
	}
	s.wantLines(0, "level=ERROR")

	_, err := b.etcd.UserChangePassword(ctx, "orders", "0ther")
	b.must(err)
	b.publishBodies(orders("locked", 2)...)
	s.waitLog("level=ERROR", "etcd refuses a call", "check ETCD_USERNAME and ETCD_PASSWORD")
	s.alive()
	_, err = b.etcd.UserChangePassword(ctx, "orders", "s3cret")
	b.must(err)
	s.waitLogs(2, "msg=processed", "id=locked")
	s.waitLog("etcd accepts calls again")
	s.stop()
	s.wantLines(1, "etcd refuses a call")
	s.wantNoSecrets("s3cret", "0ther", "r00t")
	b.wantAllDone("orders", 42)
}

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

// quickLogins configures an etcd with cheap password checks. With the race detector a
// login would otherwise take a second of CPU, in which etcd renews no lease.
var quickLogins = stack.EtcdOptions{Config: map[string]any{"bcrypt-cost": 4}}

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
	if !strings.Contains(readFile(b.t, "../../../docker-compose.yaml"), "test: [CMD, /usr/local/bin/etcdctl, --command-timeout=3s, auth, status]") {
		b.t.Error("docker-compose.yaml has another healthcheck for etcd")
	}
}
