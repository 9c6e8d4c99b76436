package stack_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// A server does not start in a folder with files, because Close removes the folder.
func TestFolderInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	check(t, os.WriteFile(kept, nil, 0o600))
	if e, err := stack.StartEtcd(deadline(t), dir, stack.EtcdOptions{}); err == nil {
		e.Close()
		t.Error("etcd was started in a folder with files")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}
