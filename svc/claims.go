package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/config"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/health"
)

// openClaims connects to etcd, reads the ids that it remembers, and begins to claim and
// record, until etcdCtx ends or the returned function is called. It gives up when ctx ends.
func openClaims(ctx, etcdCtx context.Context, cfg config.Config, revoke time.Duration, status *health.Status, log *slog.Logger) (*claim.Etcd, func(), error) {
	client, err := etcd.Dial(ctx, etcd.Server{
		Endpoints: cfg.EtcdEndpoints, TLS: cfg.EtcdTLS, Username: cfg.EtcdUser, Password: cfg.EtcdPassword,
	}, log)
	if err != nil {
		return nil, nil, err
	}
	role := roles[cfg.Service]
	claims := claim.NewEtcd(client, claim.Options{
		Prefix: cfg.EtcdPrefix, Role: role.name, Types: slices.Sorted(maps.Keys(role.handlers)), TTL: cfg.ClaimTTL,
		Window: cfg.DedupWindow, MaxIDs: cfg.CacheSize, CloseTimeout: revoke, Log: log,
	})
	running, stopRunning := context.WithCancel(etcdCtx)
	var run sync.WaitGroup
	stopProbe := func() {}
	if cfg.HealthAddr != "" {
		stopProbe = status.Probe(partEtcd, claims.Ping)
	}
	closeClaims := func() {
		stopRunning()
		run.Wait()
		stopProbe()
		client.Close()
	}
	began := time.Now()
	if err := claims.Load(ctx); err != nil {
		closeClaims()
		return nil, nil, err
	}
	run.Go(func() { claims.Run(running) })
	status.Set(partCache, nil)
	log.Info("cache warmed", "ids", claims.Remembered(), "took", time.Since(began).Round(time.Millisecond))
	return claims, closeClaims, nil
}
