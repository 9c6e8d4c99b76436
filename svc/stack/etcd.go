package stack

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// EtcdOptions are what a test may want of etcd beside its defaults.
type EtcdOptions struct {
	QuotaBytes int64 // of the backend; 0: etcd's own
	// TLS: with CACert clients must show a certificate of it.
	Cert, Key, CACert string
}

// Etcd is one etcd member: a process of its own, built from etcd's own code.
type Etcd struct {
	spec etcdSpec
	proc *process
}

type etcdSpec struct {
	EtcdOptions
	Name, Dir, Log string
	Client, Peer   int // ports
	Cluster        string
}

// StartEtcd starts a cluster of one, with its data in dir, as docker-compose
// has it: lease checkpoints, durable writes. It is ready when it returns.
func StartEtcd(ctx context.Context, dir string, o EtcdOptions) (*Etcd, error) {
	members, err := StartEtcdCluster(ctx, dir, 1, o)
	if err != nil {
		return nil, err
	}
	return members[0], nil
}

// StartEtcdCluster starts a cluster of n members.
func StartEtcdCluster(ctx context.Context, dir string, n int, o EtcdOptions) (members []*Etcd, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	var cluster []string
	for i := range n {
		e := &Etcd{spec: etcdSpec{EtcdOptions: o, Name: fmt.Sprintf("etcd%d", i)}}
		e.spec.Dir = filepath.Join(dir, e.spec.Name)
		e.spec.Log = e.spec.Dir + ".log"
		if err := freePorts(&e.spec.Client, &e.spec.Peer); err != nil {
			return nil, err
		}
		members = append(members, e)
		cluster = append(cluster, fmt.Sprintf("%s=http://127.0.0.1:%d", e.spec.Name, e.spec.Peer))
	}
	started := make(chan error)
	for _, e := range members {
		e.spec.Cluster = strings.Join(cluster, ",")
		go func() { started <- e.Start(ctx) }()
	}
	for range members {
		if e := <-started; e != nil {
			err = e
		}
	}
	if err != nil {
		for _, e := range members {
			e.Close()
		}
		return nil, err
	}
	return members, nil
}

// Endpoint is where clients connect: host:port.
func (e *Etcd) Endpoint() string { return fmt.Sprintf("127.0.0.1:%d", e.spec.Client) }

// Start starts the member again on its data, after Kill or Stop.
func (e *Etcd) Start(ctx context.Context) error {
	if err := os.MkdirAll(e.spec.Dir, 0o700); err != nil {
		return err
	}
	proc, err := start(ctx, childSpec{Etcd: &e.spec})
	if err != nil {
		return fmt.Errorf("start etcd: %w\n%s", err, tail(e.spec.Log))
	}
	e.proc = proc
	return nil
}

// Kill ends the member as a power cut does.
func (e *Etcd) Kill() { e.proc.kill() }

// Stop ends the member in good order.
func (e *Etcd) Stop(ctx context.Context) error {
	e.proc.stdin.Close()
	return e.proc.wait(ctx)
}

// Pause freezes the member; Resume lets it go on.
func (e *Etcd) Pause() error  { return e.proc.signal(syscall.SIGSTOP) }
func (e *Etcd) Resume() error { return e.proc.signal(syscall.SIGCONT) }

// Close ends the member and removes its data. It may be called twice.
func (e *Etcd) Close() error {
	if e.proc != nil {
		e.proc.kill()
	}
	return os.RemoveAll(e.spec.Dir)
}

// run is the member, in the child.
func (s *etcdSpec) run() error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = s.Name, s.Dir, s.Cluster
	scheme := "http"
	if s.Cert != "" {
		scheme = "https"
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: s.Cert, KeyFile: s.Key, TrustedCAFile: s.CACert, ClientCertAuth: s.CACert != ""}
	}
	client, peer := local(scheme, s.Client), local("http", s.Peer)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, client
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, peer
	cfg.QuotaBackendBytes = s.QuotaBytes
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "5m"
	gate := cfg.ServerFeatureGate.(featuregate.MutableFeatureGate)
	if err := gate.SetFromMap(map[string]bool{"LeaseCheckpoint": true, "LeaseCheckpointPersist": true}); err != nil {
		return err
	}
	cfg.LogOutputs = []string{s.Log}
	cfg.LogLevel = "warn"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	case <-time.After(time.Minute):
		return fmt.Errorf("etcd is not ready after a minute")
	}
	fmt.Println(os.Getpid())
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func local(scheme string, port int) []url.URL {
	return []url.URL{{Scheme: scheme, Host: fmt.Sprintf("127.0.0.1:%d", port)}}
}

// Client returns a client of the member. Close it.
func (e *Etcd) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
}
