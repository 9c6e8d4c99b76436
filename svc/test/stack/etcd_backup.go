package stack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// Save writes a backup of the member's data to a file, like `etcdctl snapshot save`.
func (e *Etcd) Save(ctx context.Context, file string) error {
	config := clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()}
	if _, err := snapshot.NewV3(zap.NewNop()).Save(ctx, config, file); err != nil {
		return fmt.Errorf("save %s: %w", e.name, err)
	}
	return nil
}

// Restore replaces the data of a stopped member by a backup, like `etcdutl snapshot
// restore`, and makes the member a cluster of its own. A bump raises its revision by
// that much and marks the earlier revisions as compacted.
func (e *Etcd) Restore(file string, bump uint64) error {
	data, peer := filepath.Join(e.dir, "data"), "http://"+e.peer.Addr()
	err := os.RemoveAll(data)
	if err == nil {
		err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
			SnapshotPath: file, Name: e.name, OutputDataDir: data,
			PeerURLs: []string{peer}, InitialCluster: e.name + "=" + peer, InitialClusterToken: "etcd-cluster", // default
			RevisionBump: bump, MarkCompacted: bump > 0,
		})
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", e.name, err)
	}
	return nil
}
