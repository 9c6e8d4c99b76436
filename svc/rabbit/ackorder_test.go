package rabbit

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// In whatever order deliveries finish, each is acknowledged exactly once, and none
// before it has finished.
func TestAckOrder(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			b, prefetch := newBroker(t), 1+rnd.IntN(50)
			slow := rnd.IntN(10) // of ten deliveries
			var order ackOrder
			look := func(overdue bool, tags ...uint64) {
				b.finish(tags...)
				for _, tag := range tags {
					order.add(tag)
				}
				if tag, ok := order.prefix(); ok {
					b.ack(tag, true)
				}
				if tag, ok := order.prefix(); ok {
					t.Fatalf("prefix returns %d twice", tag)
				}
				if overdue {
					for _, tag := range order.outOfOrder() {
						b.ack(tag, false)
					}
					if owed := b.tags(true); len(owed) > 0 {
						t.Fatalf("%v are not acknowledged", owed)
					}
				} else if owed, open := b.tags(true), b.tags(false); len(owed) > 0 && (len(open) == 0 || owed[0] < open[0]) {
					t.Fatalf("%d is not acknowledged although all tags before it are finished; open: %v", owed[0], open)
				}
			}
			for range 400 {
				if len(b.open) < prefetch {
					b.deliver(1 + rnd.IntN(prefetch-len(b.open)))
				}
				var tags []uint64
				for _, tag := range b.tags(false) {
					if tag%10 >= uint64(slow) && rnd.IntN(3) == 0 || rnd.IntN(200) == 0 {
						tags = append(tags, tag)
					}
				}
				rnd.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
				look(rnd.IntN(4) == 0, tags...)
			}
			look(false, b.tags(false)...)
			if len(b.open) > 0 {
				t.Errorf("%v are not acknowledged", slices.Sorted(maps.Keys(b.open)))
			}
		})
	}
}

// While one delivery is unfinished for a long time, the memory of ackOrder does not
// grow with the number of later deliveries.
func TestAckOrderBehindOneThatWaits(t *testing.T) {
	const rounds, prefetch = 300, 1000
	var order ackOrder
	var before int64
	next := uint64(2)
	for n := range rounds {
		if n == 1 {
			before = heap()
		}
		for range prefetch - 1 {
			order.add(next)
			next++
		}
		if tag, ok := order.prefix(); ok {
			t.Fatalf("tag 1 is acknowledged with %d", tag)
		}
		if n := len(order.outOfOrder()); n != prefetch-1 {
			t.Fatalf("%d of %d deliveries are acknowledged", n, prefetch-1)
		}
	}
	if grown := heap() - before; grown > 256<<10 {
		t.Errorf("%d deliveries that were acknowledged long ago take %d KiB", next-2, grown>>10)
	}
	order.add(1)
	if tag, ok := order.prefix(); !ok || tag != 1 {
		t.Errorf("the last acknowledgement is %d, %v; want 1", tag, ok)
	}
	runtime.KeepAlive(order)
}

// broker is the broker's view of a channel. It fails the test where a real broker
// would close the channel.
type broker struct {
	t *testing.T

	mu      sync.Mutex
	last    uint64          // the last tag delivered
	open    map[uint64]bool // tags delivered and not acknowledged; true: finished
	singles []uint64        // tags acknowledged singly
}

func newBroker(t *testing.T) *broker { return &broker{t: t, open: make(map[uint64]bool)} }

func (b *broker) deliver(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range n {
		b.last++
		b.open[b.last] = false
	}
}

// finish notes that the handlers of these deliveries have finished.
func (b *broker) finish(tags ...uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, tag := range tags {
		b.open[tag] = true
	}
}

func (b *broker) ack(tag uint64, multiple bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, open := b.open[tag]; !open {
		b.t.Errorf("tag %d is acknowledged twice", tag)
	}
	if !multiple {
		b.singles = append(b.singles, tag)
		b.forget(tag)
		return nil
	}
	for other := range b.open {
		if other <= tag {
			b.forget(other)
		}
	}
	return nil
}

func (b *broker) forget(tag uint64) {
	if !b.open[tag] {
		b.t.Errorf("tag %d is acknowledged before it is finished", tag)
	}
	delete(b.open, tag)
}

// tags returns the tags that are not acknowledged and whose handlers have finished, or
// have not.
func (b *broker) tags(finished bool) (tags []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for tag, f := range b.open {
		if f == finished {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
