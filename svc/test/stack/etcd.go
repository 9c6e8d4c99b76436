package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// EtcdOptions configure a member beyond etcd's defaults and beyond the lease
// checkpoints and the compaction, which docker-compose.yaml turns on too.
type EtcdOptions struct {
	QuotaBytes int64          // maximum size of the data; 0: etcd's default, 2 GiB
	Config     map[string]any // further settings, by their names in etcd's configuration file

	// Paths of PEM files, for TLS. With CACert, clients must present a
	// certificate from that authority.
	Cert, Key, CACert string
}

// Etcd is a private etcd member. It is a process of its own, so that it can be killed
// and leaves its data on the disk as after a crash.
type Etcd struct {
	*Server
	client, peer Port
}

// StartEtcd starts a cluster of one member in dir, a folder that is new or
// empty, and returns when it serves. That takes half a second.
func StartEtcd(ctx context.Context, dir string, options EtcdOptions) (*Etcd, error) {
	members, err := startEtcds(ctx, []string{dir}, options)
	if err != nil {
		return nil, err
	}
	return members[0], nil
}

// StartEtcdCluster starts a cluster of n members in folders below dir.
func StartEtcdCluster(ctx context.Context, dir string, n int, options EtcdOptions) ([]*Etcd, error) {
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = filepath.Join(dir, fmt.Sprintf("etcd%d", i))
	}
	return startEtcds(ctx, dirs, options)
}

func startEtcds(ctx context.Context, dirs []string, options EtcdOptions) (members []*Etcd, err error) {
	defer func() {
		if err != nil {
			for _, e := range members {
				err = errors.Join(err, e.Close())
			}
			members = nil
		}
	}()
	var peers []string
	for i, dir := range dirs {
		e, err := newEtcd(fmt.Sprintf("etcd%d", i), dir)
		if err != nil {
			return members, fmt.Errorf("start etcd: %w", err)
		}
		members = append(members, e)
		peers = append(peers, e.name+"=http://"+e.peer.Addr())
	}
	for _, e := range members {
		if err := e.writeConfig(strings.Join(peers, ","), options); err != nil {
			return members, fmt.Errorf("configure etcd: %w", err)
		}
	}
	// The members start at the same time: none serves before most of them run.
	starting, ctx := errgroup.WithContext(ctx)
	for _, e := range members {
		starting.Go(func() error { return e.Start(ctx) })
	}
	return members, starting.Wait()
}

func newEtcd(name, dir string) (*Etcd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own executable: %w", err)
	}
	server, err := newServer(name, dir)
	if err != nil {
		return nil, err
	}
	e := &Etcd{Server: server}
	// The environment holds nothing else, because etcd would take settings from it.
	// docker-compose.yaml sets GOGC to the same value and explains it.
	e.command = &exec.Cmd{Path: exe, Args: []string{etcdName, e.configFile()}, Env: []string{"GOGC=200"}}
	e.ready = e.awaitServing
	if err := e.reserve(&e.client, &e.peer); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Endpoint returns the host and port of the listener for clients.
func (e *Etcd) Endpoint() string { return e.client.Addr() }

// Client returns a client of the member, without TLS. The caller closes it.
func (e *Etcd) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
}

func (e *Etcd) configFile() string { return filepath.Join(e.dir, "etcd.json") }

func (e *Etcd) writeConfig(cluster string, options EtcdOptions) error {
	scheme := "http"
	if options.Cert != "" {
		scheme = "https"
	}
	client, peer := scheme+"://"+e.client.Addr(), "http://"+e.peer.Addr()
	config := map[string]any{
		"name":                        e.name,
		"data-dir":                    filepath.Join(e.dir, "data"),
		"listen-client-urls":          client,
		"advertise-client-urls":       client,
		"listen-peer-urls":            peer,
		"initial-advertise-peer-urls": peer,
		"initial-cluster":             cluster,
		"quota-backend-bytes":         options.QuotaBytes,
		"auto-compaction-mode":        "periodic",
		"auto-compaction-retention":   "5m",
		// Without checkpoints each change or restart of the leader extends a lease to
		// its full TTL.
		"feature-gates": "LeaseCheckpoint=true,LeaseCheckpointPersist=true",
		"log-outputs":   []string{"stderr"},
		"client-transport-security": map[string]any{
			"cert-file": options.Cert, "key-file": options.Key,
			"trusted-ca-file": options.CACert, "client-cert-auth": options.CACert != "",
		},
	}
	maps.Copy(config, options.Config)
	content, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(e.configFile(), content, 0o600)
}

// awaitServing waits for the line that serveEtcd prints when it serves.
func (e *Etcd) awaitServing(ctx context.Context, p *process) error {
	select {
	case <-p.spoke:
		return nil
	case <-p.gone:
		return p.ended()
	case <-ctx.Done():
		return ctx.Err()
	}
}
