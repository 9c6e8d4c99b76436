package claim

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/outage"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options configure the claims of one process.
type Options struct {
	Prefix       string // ETCD_PREFIX: what all keys begin with; "": /service/
	Role         string
	Types        []string      // of the events that the process handles, for the others
	TTL          time.Duration // CLAIM_TTL
	Window       time.Duration // DEDUP_WINDOW; 0: for ever
	MaxIDs       int           // CACHE_SIZE: how many ids are remembered
	CloseTimeout time.Duration // how long the revocation of the session may take at a stop
	Log          *slog.Logger
}

// Etcd claims ids for the deliveries of one process. Call Load, then Run; the other
// methods may be called by many goroutines at once, and after Run has returned.
type Etcd struct {
	*claimer
	o      Options
	prefix string // of all keys of the role
	value  string // of the session's key
	client *etcd.Client

	windows chan struct{} // receives when a window begins or ends, and when too many ids are remembered

	unreadable *outage.Log // keys
	lostLeases *outage.Log // of new sessions
	tooMany    *outage.Log // ids that cannot be forgotten
}

// NewEtcd returns the claims of one process. The client remains the caller's. NewEtcd asks
// nothing of etcd yet.
func NewEtcd(client *etcd.Client, o Options) *Etcd {
	host, _ := os.Hostname()
	value, _ := json.Marshal(Process{host, os.Getpid(), o.Types})
	return &Etcd{
		claimer: newClaimer(), o: o, prefix: cmp.Or(o.Prefix, "/service/") + o.Role + "/",
		value:      string(value),
		client:     client,
		windows:    make(chan struct{}, 1),
		unreadable: &outage.Log{Logger: o.Log, Level: slog.LevelWarn, Begins: "keys in etcd are ignored: they cannot be read"},
		lostLeases: &outage.Log{
			Logger: o.Log, Level: slog.LevelWarn,
			Begins: "the lease of a new session was lost before its key was written: events wait unacknowledged",
			Hint:   "check that ETCD_ENDPOINTS names members of one cluster, and that etcd answers within CLAIM_TTL",
		},
		tooMany: &outage.Log{
			Logger: o.Log, Level: slog.LevelWarn, Begins: "more ids are remembered than CACHE_SIZE",
			Hint: "raise CACHE_SIZE; with DEDUP_WINDOW=0 nothing is forgotten",
		},
	}
}

// Load reads what etcd remembers. It waits for etcd, and fails only when ctx ends, or with
// ErrCacheSize the first time.
func (s *Etcd) Load(ctx context.Context) error {
	seen, most := s.seen(), math.MaxInt
	if seen == 0 {
		most = 2 * s.o.MaxIDs
	}
	view, revision, err := s.snapshot(ctx, s.view.session, most)
	if err != nil {
		return fmt.Errorf("read the processed ids: %w", err)
	}
	s.rebuild(view, revision, seen)
	s.checkWindows()
	return nil
}

// Run claims and records ids until ctx ends. Then all calls that wait return
// ErrClosed, and the session is revoked, which frees its claims, unless a delivery
// still works under one.
func (s *Etcd) Run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { s.followWindows(ctx) })
	last := s.runSessions(ctx)
	s.claimer.close()
	parts.Wait()
	s.revokeLast(context.WithoutCancel(ctx), last)
}

// revokeLast revokes the last session. A claim whose work may still run, or whose
// record has an unknown outcome, may only expire.
func (s *Etcd) revokeLast(ctx context.Context, last clientv3.LeaseID) {
	if n := s.inUse(); n > 0 {
		s.o.Log.Warn("stopped before it was known that the work is recorded: these events may be done again when the claims expire", "claims", n, "within", s.o.TTL)
		return
	}
	if last == clientv3.NoLease {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.CloseTimeout)
	defer cancel()
	if err := s.client.Revoke(ctx, last); err != nil {
		s.o.Log.Warn("the session was not revoked: its claims expire", "within", s.o.TTL, "error", err)
	}
}

// Ping fails while etcd is unreachable or refuses a call.
func (s *Etcd) Ping(ctx context.Context) error { return s.client.Ping(ctx, s.prefix) }

// randomName draws 64 bits.
func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x", b)
}

// leaseName is a lease as etcdctl prints it.
func leaseName(id clientv3.LeaseID) string { return fmt.Sprintf("%016x", int64(id)) }
