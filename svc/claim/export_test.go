package claim

import clientv3 "go.etcd.io/etcd/client/v3"

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
