// Package claim grants each id to one delivery at a time, among all processes of a
// role, and remembers the ids that were processed. A service calls [NewEtcd], Load and Run
// at its start, and for each event Claim and then Complete or Release.
//
// # The keys
//
// All keys of a role are under ETCD_PREFIX and <role>/. <s> names a session, <n>
// numbers the writes of a session, <w> names a window. A list is a JSON array
// of ids.
//
//	session/<s>         a [Process]    the process is alive; the key's version counts its writes
//	claim/<s>/<n>       a list         the session asks for these ids
//	done/<w>/<s>/<n>    a list         these ids were processed
//	forget/<w>/<s>/<n>  a list         these ids of that record do not count: an operator forgot them
//	window/<w>          DEDUP_WINDOW   the window has not ended
//
// A session's key and its claims are attached to the session's lease, the other keys to the
// window's. (The window "forever" has no lease.) A session or a window lives as long as its key
// exists.
//
// # The rule
//
// An id is done if a record of a living window lists it, and no forget key of that record does.
// Otherwise it belongs to the oldest claim that lists it, by CreateRevision, which is also the
// fencing token: it grows with each new owner.
//
// # What a crash costs
//
//	before the claim is written        nothing: the event is delivered again
//	after that, before the work        the event waits for CLAIM_TTL, then another process does the work
//	during it, or before the record    the wait, and the work is done again
//	after the record, before the ack   the event is delivered again and skipped
//
// README.md, in this folder, shows in pictures the life of an id, one event, and a race of two
// processes. It says what happens when etcd is unreachable, and in which order to read the files.
package claim

import (
	"context"
	"errors"

	"github.com/streamdal/gophercon2021/svc/etcd"
)

var (
	// ErrDone says that the id was processed: skip the event.
	ErrDone = errors.New("the id has been processed")
	// ErrSuspended says that the claim may have been lost: stop the work, then
	// call Reclaim or Release.
	ErrSuspended = errors.New("the claim is suspended: its session was not renewed in time")
	// ErrClosed says that the process is stopping. The outcome is unknown.
	ErrClosed = errors.New("the claims are closed")
	// ErrInvalidID says that an id cannot be stored: it is not UTF-8, or longer than
	// 10,000 bytes.
	ErrInvalidID = errors.New("the id is not UTF-8, or too long")
	// ErrCacheSize says that a process that starts finds more than twice as many ids as it is to
	// remember. To read them needs too much memory, and to forget them would be for all processes.
	ErrCacheSize = errors.New("more ids are remembered than twice CACHE_SIZE")
)

// Hint says how to fix an error of [Etcd.Load].
func Hint(err error) string {
	if errors.Is(err, ErrCacheSize) {
		return "raise CACHE_SIZE, at best to that of the role's other replicas; or have all of them forget the oldest ids: " +
			"`etcdctl lease revoke <window>`, where window/<window> is the first, but not window/forever, of `etcdctl get --prefix <prefix>window/ --keys-only --sort-by=CREATE --order=ASCEND`"
	}
	return etcd.Hint(err)
}

// Claim is the right to work on an id. It ends with Complete, to be called once, or
// with Release; a Release after Complete does nothing.
type Claim struct {
	ID string
	// Token is the fencing token, an etcd revision: it grows with each new session that
	// owns the id. Two deliveries of one process may have the same. It is 0 without etcd.
	Token int64
	// Held ends with the cause ErrSuspended when the claim may have been lost, and
	// with ErrClosed when the process stops.
	Held context.Context

	entry  *entry
	answer chan error // receives the result of Claim, Reclaim or Complete; capacity 1
}

// NoDedup grants every id to every caller: the service without etcd.
type NoDedup struct{}

// Claim grants id.
func (NoDedup) Claim(_ context.Context, id string) (*Claim, error) {
	return &Claim{ID: id, Held: context.Background()}, nil
}

// Reclaim grants the id again.
func (NoDedup) Reclaim(context.Context, *Claim) error { return nil }

// Check does nothing: there is no other owner.
func (NoDedup) Check(context.Context, *Claim) error { return nil }

// Complete does nothing: no id is remembered.
func (NoDedup) Complete(*Claim) error { return nil }

// Release does nothing.
func (NoDedup) Release(*Claim) {}

// HandledElsewhere knows of no other process.
func (NoDedup) HandledElsewhere(string) bool { return false }
