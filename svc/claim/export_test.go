package claim

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// SessionLease returns the lease under which the store claims now; 0: none.
func (s *Etcd) SessionLease() clientv3.LeaseID {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if s.sessions.current == nil {
		return 0
	}
	return s.sessions.current.lease
}

// Key returns the key of an id.
func Key(role, id string) string { return prefix(role, shardOf(id)) + id }

// Instance returns the value of the process's claims.
func (s *Etcd) Instance() string { return s.instance }

// Holds describes the current session: its lease and its holds.
func (s *Etcd) Holds() string {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if ses := s.sessions.current; ses != nil {
		return fmt.Sprint(ses.lease, ses.holds, ses.retired, ses.lost)
	}
	return "none"
}
