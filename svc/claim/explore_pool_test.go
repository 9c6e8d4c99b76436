package claim

import (
	"reflect"
	"testing"
)

// The canonical form of a state contains every field on which the claimer's next steps
// depend. A new field of one of these types must be added to the form if it matters
// there, and its number must be corrected here.
func TestHashKnowsTheFields(t *testing.T) {
	for typ, want := range map[reflect.Type]int{
		reflect.TypeFor[claimer](): 16, reflect.TypeFor[entry](): 9, reflect.TypeFor[Claim](): 5, reflect.TypeFor[write](): 12,
		reflect.TypeFor[roleState](): 8, reflect.TypeFor[claimKey](): 5, reflect.TypeFor[recordKey](): 2, reflect.TypeFor[recordName](): 3, reflect.TypeFor[doneSet](): 10,
	} {
		if typ.NumField() != want {
			t.Errorf("%v has %d fields, the exploration expects %d", typ, typ.NumField(), want)
		}
	}
}

// statePool reuses states, because a new one allocates a thousand maps.
type statePool struct {
	ids  []string
	all  []*roleState
	used int
}

func (p *statePool) reset() { p.used = 0 }

func (p *statePool) get(session string) *roleState {
	if p.used == len(p.all) {
		p.all = append(p.all, newRoleState(""))
	}
	s := p.all[p.used]
	p.used++
	s.session, s.record, s.follows = session, recordKey{}, false
	clear(s.sessions)
	clear(s.claims)
	clear(s.queues)
	clear(s.forgotten)
	for _, id := range p.ids {
		hash, shard := s.done.hash(id)
		delete(shard, hash)
	}
	clear(s.done.windows)
	clear(s.done.numbers)
	s.done.last, s.done.total, s.done.living, s.done.cursor, s.done.unswept = 0, 0, 0, 0, 0
	return s
}
