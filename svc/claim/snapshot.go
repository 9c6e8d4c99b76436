package claim

import (
	"cmp"
	"context"
	"errors"
	"time"

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

// readAll applies all keys to state, page by page, at the latest revision, which it
// returns.
func (s *Etcd) readAll(ctx context.Context, state *roleState) (revision int64, err error) {
	type answer struct {
		page *clientv3.GetResponse
		err  error
	}
	read := func(from string, limit, revision int64) <-chan answer {
		answers := make(chan answer, 1)
		go func() {
			page, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.prefix)), clientv3.WithLimit(limit), clientv3.WithRev(revision))
			answers <- answer{page, err}
		}()
		return answers
	}
	var unreadable error // of the first page that has such keys
	told, limit := time.Now(), int64(100)
	for next := read(s.prefix, limit, 0); next != nil; {
		a := <-next
		if a.err != nil {
			return 0, a.err
		}
		if revision == 0 {
			revision = a.page.Header.Revision
		}
		changes, size, last := make([]change, len(a.page.Kvs)), int64(1), ""
		for i, kv := range a.page.Kvs {
			changes[i] = s.change(kv)
			size += int64(len(kv.Key) + len(kv.Value))
			last = string(kv.Key)
		}
		limit = min(max(1, limit*pageBytes/size), 4*limit, maxPage)
		next = nil
		if a.page.More {
			next = read(last+"\x00", limit, revision) // while this page is applied
		}
		unreadable = cmp.Or(unreadable, state.Apply(changes, func(string, *recordKey) {}))
		if time.Since(told) > progressInterval {
			told = time.Now()
			s.o.Log.Info("reading the processed ids", "ids", state.done.living)
		}
	}
	s.logUnreadable(unreadable)
	return revision, nil
}
