package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// snapshot reads all keys at one revision, as the view of a process with that session. It fails
// with ErrCacheSize if more than most ids are remembered, not counting those that are for ever.
func (s *Etcd) snapshot(ctx context.Context, session string, most int) (state *roleState, revision int64, err error) {
	for {
		state = newRoleState(session)
		state.done.load()
		revision, err = s.readAll(ctx, state, most)
		if !errors.Is(err, rpctypes.ErrCompacted) && !errors.Is(err, rpctypes.ErrFutureRev) {
			state.done.endLoad()
			return state, revision, err
		}
		// The revision is too old, or from before etcd was restored from a backup.
	}
}

// readAll applies all keys to state at the latest revision, which it returns.
func (s *Etcd) readAll(ctx context.Context, state *roleState, most int) (revision int64, err error) {
	var unreadable error // of the first page that has such keys
	told, found := time.Now(), 0
	count := func(_ string, record *recordKey) {
		if record != nil && record.window != forever {
			found++
		}
	}
	use := func(kvs []*mvccpb.KeyValue) error {
		changes := make([]change, len(kvs))
		for i, kv := range kvs {
			changes[i] = s.change(kv)
		}
		unreadable = cmp.Or(unreadable, state.Apply(changes, count))
		if time.Since(told) > progressInterval {
			told = time.Now()
			s.o.Log.Info("reading the processed ids", "ids", state.done.living)
		}
		if found > most {
			return fmt.Errorf("%w, which is %d: at least %d under %s", ErrCacheSize, s.o.MaxIDs, found, s.prefix)
		}
		return nil
	}
	revision, err = ReadKeys(ctx, s.client, s.prefix+"forget/", 0, use) // before the records
	if err == nil {
		_, err = ReadKeys(ctx, s.client, s.prefix, revision, use)
	}
	s.logUnreadable(unreadable)
	return revision, err
}

// ReadKeys reads all keys that begin with prefix, page by page in their order, at a revision or,
// with 0, at the latest, until use fails. It returns the revision.
func ReadKeys(ctx context.Context, client *etcd.Client, prefix string, revision int64, use func(page []*mvccpb.KeyValue) error) (int64, error) {
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
		if err := use(a.page.Kvs); err != nil {
			return 0, err
		}
	}
	return revision, nil
}
