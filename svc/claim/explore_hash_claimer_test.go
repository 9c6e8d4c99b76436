package claim

import (
	"bytes"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func clientLease(i int) clientv3.LeaseID { return clientv3.LeaseID(i) }

// addProcess adds the parts of a process on which its next steps depend.
func (h *hasher) addProcess(p *simProcess) {
	c := p.c
	h.addBools(p.over, len(c.wake) > 0, p.suspended(), p.sending != nil, c.committed == 0, c.viewed >= c.committed)
	h.addWrite(c.view.session, c.sent)
	h.add(h.version(c.view.session, c.sent), index(&h.windows, c.window.Name), len(c.checks))
	if h.addBools(c.pending != nil); c.pending != nil {
		h.addContent(c.pending)
		h.add(len(c.pending.checks))
	}
	if r := c.view.record; len(r.ids) > 0 {
		h.add(index(&h.windows, r.window))
		h.addWrite(r.session, r.write)
		h.addIDs(r.ids)
		h.addIDs(c.view.forgotten[r.recordName])
	}
	for _, id := range h.x.etcd.ids {
		h.addEntry(p, h.renamed(id))
	}
	h.addSorted(len(p.deliveries), func(i int) { h.addDelivery(p, p.deliveries[i]) })
}

// addEntry adds the process's knowledge of an id.
func (h *hasher) addEntry(p *simProcess, id string) {
	s := p.c.view
	hash, shard := s.done.hash(id)
	n, listed := shard[hash]
	h.addBools(listed, s.Done(id))
	if listed && s.Done(id) {
		h.add(index(&h.windows, s.done.windows[n].name))
	}
	for _, claim := range s.queues[id] {
		h.addWrite(claim.session, claim.write)
		h.addToken(claim.token)
	}
	e := p.c.entries[id]
	if h.addBools(e != nil); e == nil {
		return
	}
	h.add(len(e.waiting))
	h.addBools(e.holder != nil, e.finished, e.done, e.recorded, e.pending, e.due)
}

func (h *hasher) addDelivery(p *simProcess, d *simDelivery) {
	h.addID(d.id)
	h.add(int(d.phase))
	h.addBools(d.gone, d.granted && d.claim.Held.Err() == nil)
	switch e := p.c.entries[d.id]; d.phase {
	case waiting:
		h.add(slices.Index(e.waiting, d.claim))
	case checking:
		h.addBools(slices.Contains(p.c.checks, d.check))
	default:
		h.addBools(e != nil && e.holder == d.claim)
	}
}

// addTail adds the changes that the process's view has not seen.
func (h *hasher) addTail(p *simProcess) {
	for _, events := range h.x.etcd.log[p.view+1:] {
		h.add('|')
		for _, e := range events {
			h.addBools(e.Deleted)
			ids := []string(nil)
			if len(e.Value) > 0 && e.Value[0] == '[' {
				ids, _ = parseIDs(e.Value)
			}
			h.addKey(e.Key, ids, e.Created)
		}
	}
}

// addNet adds the copies of writes that etcd has not carried out yet.
func (h *hasher) addNet() []byte {
	h.addSorted(len(h.x.net), func(i int) {
		w := h.x.net[i]
		h.addBools(w.current(), w.half)
		h.addContent(&w.write)
	})
	return h.b
}

// version returns the number of a write relative to the version of the session's key.
func (h *hasher) version(session string, n int64) int {
	if v := h.x.etcd.keys["session/"+session].version; v > 0 {
		return int(n - v)
	}
	return 100
}

func (h *hasher) addContent(w *write) {
	h.addWrite(w.Session, w.N)
	h.add(h.version(w.Session, w.N))
	h.addIDs(w.Claim)
	h.addSorted(len(w.Left), func(i int) {
		h.addWrite(w.Session, w.Left[i].N)
		h.addIDs(w.Left[i].IDs)
	})
	h.addIDs(w.Done)
	if len(w.Done) > 0 {
		h.add(index(&h.windows, w.Window.Name))
		h.addBools(w.NewWindow)
		h.addWrite(w.Session, w.Record)
	}
}

// addSorted adds n things in the order of their encodings.
func (h *hasher) addSorted(n int, one func(i int)) {
	h.add(n)
	if n == 0 {
		return
	}
	start := len(h.b)
	var parts [][]byte
	for i := range n {
		from := len(h.b)
		one(i)
		parts = append(parts, bytes.Clone(h.b[from:]))
	}
	if n > 1 {
		slices.SortFunc(parts, bytes.Compare)
		h.b = append(h.b[:start], bytes.Join(parts, nil)...)
	}
}
