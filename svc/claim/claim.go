// Package claim lets one delivery of an id through, in all processes of a
// role together, and remembers the ids that are done.
//
// # The record
//
// An id is one key in etcd:
//
//	/service/<role>/<xx>/<id>    xx: two hex digits of a hash of the id
//
//	claimed <instance>           somebody works on it; under the session's lease
//	done <unix seconds>          it was processed; under a retention lease
//
// The 256 shards xx are for the warm-up: etcd counts all that is left of a
// range for every page read of it, so a long range is read in quadratic time.
//
// # The protocol
//
//	absent ──claim──▶ claimed ──complete──▶ done ──DEDUP_WINDOW──▶ absent
//	   ▲                 │
//	   └──release, or the claimant's session ends (crash: after CLAIM_TTL)
//
// A claim's token is its key's CreateRevision: it grows with every new owner
// and stays as long as the key has not been away. Each step is one guarded
// transaction that may be sent again, so that a lost answer is asked for again:
//
//   - claim: absent becomes claimed. Otherwise done is done; a claim of this
//     very process that no delivery holds (its answer was lost, its session
//     was replaced) is granted; anybody else's is busy.
//   - complete: claimed under our token becomes done, and so does absent: the
//     claim has expired and nobody took it. Under another token, ours is lost.
//   - release: claimed under our token becomes absent.
//
// # What a crash costs
//
//	before the claim                nothing: the event is delivered again
//	after the claim                 a wait of CLAIM_TTL, then it is processed
//	after the work                  the wait, and the work is done again
//	after complete, before the ack  delivered again, skipped
//
// A process that is cut off from etcd for longer than CLAIM_TTL in the middle
// of the work has the same cost as one that crashed there, save that it may
// still be working: whoever it works for can tell by the token, which is
// smaller than that of the next owner.
package claim

import (
	"context"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"math"
	"time"
)

// Forever is the life of a record that never expires.
const Forever time.Duration = math.MaxInt64

var (
	// ErrDone says that the id has been processed: skip the event.
	ErrDone = errors.New("the id has been processed")
	// ErrLost says that another process has taken the claim: its outcome
	// counts, so claim again to see it.
	ErrLost = errors.New("the claim was lost to another process")
	// ErrSessionLost is the cause with which a Grant's context ends when its
	// claim is no longer kept alive: stop working, then claim again.
	ErrSessionLost = errors.New("the session that kept the claim alive was lost")
)

// State is what a Store says about an id that was asked for.
type State int

const (
	Granted State = iota // it is the caller's: work, then Complete or Release
	Done                 // it has been processed
	Busy                 // another process has it
)

func (s State) String() string { return [...]string{"granted", "done", "busy"}[s] }

// Answer is a Store's answer to a claim.
type Answer struct {
	State State
	Grant Grant         // if Granted
	Life  time.Duration // if Done: what the record has left at least
}

// Grant is one claim that was granted.
type Grant struct {
	ID    string
	Token int64           // the fencing token
	Held  context.Context // ends when the claim is no longer kept alive

	session *session // of the etcd store; nil in a fake
}

// Store keeps the records. Its methods block until there is an answer, through
// outages: they fail only when the store's life ends, and then the outcome is
// unknown. They may be called by many goroutines at once, but for one id by
// one at a time. What they have answered has been committed durably.
type Store interface {
	// Claim asks for id once. An id that this process has claimed before is
	// granted again: it is asked for only when no delivery holds it.
	Claim(id string) (Answer, error)
	// Complete records that the work is done, and returns how long the record
	// lives at least. ErrLost: another claim has taken the place of this one.
	Complete(g Grant) (life time.Duration, err error)
	// Release gives the claim back, undone. If it is lost already, that is fine.
	Release(g Grant) error
}

const shards = 256

// prefix returns what the keys of a role's shard begin with.
func prefix(role string, shard uint8) string {
	return "/service/" + role + "/" + hex.EncodeToString([]byte{shard}) + "/"
}

// shardOf must never change: an id in another shard is another id.
func shardOf(id string) uint8 {
	h := fnv.New32a()
	h.Write([]byte(id))
	sum := h.Sum32()
	return uint8(sum ^ sum>>8 ^ sum>>16 ^ sum>>24)
}
