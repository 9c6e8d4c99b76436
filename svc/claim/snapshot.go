package claim

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// pageBytes is the target size of a page, maxPage bounds its keys.
	pageBytes        = 4 << 20
	maxPage          = 10_000
	progressInterval = 5 * time.Second // between two lines of the log while reading
)

// snapshot reads all keys at one revision, as the view of a process with that session.
func (s *Etcd) snapshot(ctx context.Context, session string) (state *roleState, revision int64, err error) {
	for {
		state = newRoleState(session)
		state.done.load()
		revision, err = s.readAll(ctx, state)
		if !errors.Is(err, rpctypes.ErrCompacted) && !errors.Is(err, rpctypes.ErrFutureRev) {
			state.done.endLoad()
			return state, revision, err
		}
		// The revision is too old, or from before etcd was restored from a backup.
	}
}

// readAll applies all keys to state at the latest revision, which it returns.
func (s *Etcd) readAll(ctx context.Context, state *roleState) (revision int64, err error) {
	var unreadable error // of the first page that has such keys
	told := time.Now()
	apply := func(kvs []*mvccpb.KeyValue) {
		changes := make([]change, len(kvs))
		for i, kv := range kvs {
			changes[i] = s.change(kv)
		}
		unreadable = cmp.Or(unreadable, state.Apply(changes, func(string, *recordKey) {}))
		if time.Since(told) > progressInterval {
			told = time.Now()
			s.o.Log.Info("reading the processed ids", "ids", state.done.living)
		}
	}
	revision, err = ReadKeys(ctx, s.client, s.prefix+"forget/", 0, apply) // before the records
	if err == nil {
		_, err = ReadKeys(ctx, s.client, s.prefix, revision, apply)
	}
	s.logUnreadable(unreadable)
	return revision, err
}

// ReadKeys reads all keys that begin with prefix, page by page in their order, at a revision or,
// with 0, at the latest. It returns the revision.
func ReadKeys(ctx context.Context, client *etcd.Client, prefix string, revision int64, apply func(page []*mvccpb.KeyValue)) (int64, error) {
	type answer struct {
		page *clientv3.GetResponse
		err  error
	}
	read := func(from string, limit, revision int64) <-chan answer {
		answers := make(chan answer, 1)
		go func() {
			page, err := client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(limit), clientv3.WithRev(revision))
			answers <- answer{page, err}
		}()
		return answers
	}
	limit := int64(100)
	for next := read(prefix, limit, revision); next != nil; {
		a := <-next
		if a.err != nil {
			return 0, a.err
		}
		if revision == 0 {
			revision = a.page.Header.Revision
		}
		size, last := int64(1), ""
		for _, kv := range a.page.Kvs {
			size += int64(len(kv.Key) + len(kv.Value))
			last = string(kv.Key)
		}
		limit = min(max(1, limit*pageBytes/size), 4*limit, maxPage)
		next = nil
		if a.page.More {
			next = read(last+"\x00", limit, revision) // while this page is applied
		}
		apply(a.page.Kvs)
	}
	return revision, nil
}
