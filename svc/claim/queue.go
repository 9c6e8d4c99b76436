package claim

import "slices"

// queue holds the claims that list one id, the oldest first. Nearly always there is
// only one.
type queue struct {
	owner *claimKey
	next  []*claimKey
}

// with adds a claim, or puts it in the place of old.
func (q queue) with(claim, old *claimKey) queue {
	if q.owner == nil || q.owner == old || q.owner == claim {
		return queue{claim, q.next}
	}
	all := slices.DeleteFunc(append([]*claimKey{q.owner}, q.next...), func(r *claimKey) bool { return r == old || r == claim })
	at, _ := slices.BinarySearchFunc(all, claim, func(a, b *claimKey) int { return int(a.token - b.token) })
	all = slices.Insert(all, at, claim)
	return queue{all[0], all[1:]}
}

func (q queue) without(claim *claimKey) queue {
	if q.owner != claim {
		return queue{q.owner, slices.DeleteFunc(slices.Clone(q.next), func(r *claimKey) bool { return r == claim })}
	}
	if len(q.next) == 0 {
		return queue{}
	}
	return queue{q.next[0], q.next[1:]}
}
