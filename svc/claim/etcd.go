package claim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/streamdal/gophercon2021/svc/outage"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options are what a store needs to know beside the servers.
type Options struct {
	Role   string
	TTL    time.Duration // CLAIM_TTL
	Window time.Duration // DEDUP_WINDOW; 0: for ever
	Log    *slog.Logger

	// Work ends when handlers must stop; Life when calls to etcd must.
	Work, Life context.Context
}

// Etcd is the Store that all processes of a role share.
type Etcd struct {
	kv        clientv3.KV
	role      string
	instance  string // the value of this process's claims
	life      context.Context
	log       *slog.Logger
	away      *outage.Log
	sessions  *sessions
	retention *retention
	claims    group
	completes group
}

// NewEtcd returns a store on the two interfaces of an etcd client, which
// remains the caller's. It asks nothing of etcd yet.
func NewEtcd(kv clientv3.KV, lease clientv3.Lease, o Options) *Etcd {
	away := outage.New(o.Log, "etcd", "events wait unacknowledged")
	s := &Etcd{
		kv: kv, role: o.Role, life: o.Life, log: o.Log, away: away,
		instance: "claimed " + newInstance(),
		sessions: &sessions{
			lease: lease, ttl: o.TTL, work: o.Work, life: o.Life, log: o.Log, away: leaseOutages{away},
			making: make(chan struct{}, 1),
		},
		retention: &retention{
			lease: lease, window: o.Window, away: leaseOutages{away},
			taking: make(chan struct{}, 1), ends: make(map[clientv3.LeaseID]*leaseEnd),
		},
	}
	s.sessions.keep, s.sessions.stopKeep = context.WithCancel(o.Life)
	s.claims = group{commit: s.commitClaims, parallel: parallel}
	s.completes = group{commit: s.commitCompletes, parallel: parallel}
	return s
}

// newInstance draws the id of this process: 64 random bits, new at each start.
func newInstance() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Close revokes the session if no claim is left under it, and waits for what
// the store has started. No call may be under way or follow.
func (s *Etcd) Close() {
	s.claims.wg.Wait()
	s.completes.wg.Wait()
	s.sessions.close()
}

// Ping asks etcd for one key, in the way of the store's other calls: with the
// rights that they need, and from a majority.
func (s *Etcd) Ping(ctx context.Context) error {
	_, err := s.kv.Get(ctx, "/service/"+s.role+"/")
	return err
}

func (s *Etcd) key(id string) string { return prefix(s.role, shardOf(id)) + id }

// Claim asks for id.
func (s *Etcd) Claim(id string) (Answer, error) {
	r := request{id: id}
	s.claims.do(&r)
	if r.answer.State == Done {
		r.answer.Life = s.retention.left(s.life, r.lease)
	}
	return r.answer, r.err
}

// commitClaims asks for each id of the batch until it has an answer.
func (s *Etcd) commitClaims(batch []*request) {
	again := newRetry(s.away)
	for len(batch) > 0 {
		ses, err := s.sessions.acquire(len(batch))
		if err != nil {
			fail(batch, fmt.Errorf("claim: %w", err))
			return
		}
		rest, err := s.claimUnder(ses, batch, again)
		batch = rest
		switch {
		case err == nil:
			s.sessions.release(ses, len(rest)) // held anew by the next try
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.sessions.drop(ses)
			s.sessions.release(ses, len(rest))
		default:
			s.sessions.retire(ses)
			s.sessions.release(ses, len(rest))
			if err := again.pause(s.life, err); err != nil {
				fail(batch, fmt.Errorf("claim: %w", err))
				return
			}
		}
	}
}

// claimUnder sends the batch once, answers what it can, and returns the rest:
// all of it with an error, what changed under its hands without.
func (s *Etcd) claimUnder(ses *session, batch []*request, again *retry) (rest []*request, err error) {
	resp, err := s.txn(again, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.claimAll(ctx, batch, ses)
	})
	if err != nil {
		return batch, err
	}
	if resp.Succeeded {
		for _, r := range batch {
			s.grant(r, resp.Header.Revision, ses)
		}
		return nil, nil
	}
	resp, err = s.txn(again, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.claimEach(ctx, batch, ses)
	})
	if err != nil {
		return batch, err
	}
	var former []*request // claims of this process that no delivery holds
	var found []*mvccpb.KeyValue
	for i, r := range batch {
		kv := existing(resp, i)
		switch {
		case kv == nil:
			s.grant(r, resp.Header.Revision, ses)
		case string(kv.Value) == s.instance:
			former, found = append(former, r), append(found, kv)
		case strings.HasPrefix(string(kv.Value), "done "):
			r.lease = clientv3.LeaseID(kv.Lease)
			s.deny(r, Done, ses)
		default:
			s.deny(r, Busy, ses)
		}
	}
	if len(former) == 0 {
		return nil, nil
	}
	resp, err = s.txn(again, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.takeOver(ctx, found, ses)
	})
	if err != nil {
		return former, err
	}
	for i, r := range former {
		if resp.Responses[i].GetResponseTxn().Succeeded {
			s.grant(r, found[i].CreateRevision, ses) // it has not been away
		} else {
			rest = append(rest, r)
		}
	}
	return rest, nil
}

func (s *Etcd) grant(r *request, token int64, ses *session) {
	r.answer = Answer{State: Granted, Grant: Grant{ID: r.id, Token: token, Held: ses.held, session: ses}}
	r.finish()
}

func (s *Etcd) deny(r *request, state State, ses *session) {
	r.answer.State = state
	s.sessions.release(ses, 1)
	r.finish()
}

// Complete records that the work is done.
func (s *Etcd) Complete(g Grant) (time.Duration, error) {
	began := time.Now()
	r := request{id: g.ID, grant: g}
	s.completes.do(&r)
	if r.err == nil || errors.Is(r.err, ErrLost) {
		s.sessions.release(g.session, 1)
	}
	return s.retention.lifeSince(began), r.err
}

func (s *Etcd) commitCompletes(batch []*request) {
	again := newRetry(s.away)
	for {
		lease, err := s.retention.take(s.life, len(batch))
		if err != nil {
			fail(batch, fmt.Errorf("complete: %w", err))
			return
		}
		err = s.completeUnder(lease, batch, again)
		switch {
		case err == nil:
			return
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.retention.gone(lease)
		default:
			if err := again.pause(s.life, err); err != nil {
				fail(batch, fmt.Errorf("complete: %w", err))
				return
			}
		}
	}
}

// completeUnder sends the batch once. It answers all of it, or fails.
func (s *Etcd) completeUnder(lease clientv3.LeaseID, batch []*request, again *retry) error {
	resp, err := s.txn(again, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.completeAll(ctx, batch, lease)
	})
	if err != nil {
		return err
	}
	if resp.Succeeded {
		for _, r := range batch {
			r.finish()
		}
		return nil
	}
	resp, err = s.txn(again, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.completeEach(ctx, batch, lease)
	})
	if err != nil {
		return err
	}
	for i, r := range batch {
		if lost(resp, i) {
			r.err = ErrLost
		}
		r.finish()
	}
	return nil
}

// txn sends one transaction, with a deadline.
func (s *Etcd) txn(again *retry, send func(context.Context) (*clientv3.TxnResponse, error)) (resp *clientv3.TxnResponse, err error) {
	err = again.once(s.life, func(ctx context.Context) error {
		resp, err = send(ctx)
		return err
	})
	return resp, err
}

// Release gives the claim back, undone.
func (s *Etcd) Release(g Grant) error {
	key := s.key(g.ID)
	_, err := insist(s.life, s.away, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.kv.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", g.Token)).
			Then(clientv3.OpDelete(key)).Commit()
	})
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	s.sessions.release(g.session, 1)
	return nil
}

func fail(batch []*request, err error) {
	for _, r := range batch {
		r.err = err
		r.finish()
	}
}
