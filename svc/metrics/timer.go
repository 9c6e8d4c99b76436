package metrics

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/cactus/go-statsd-client/v5/statsd"
)

// samples is how many times of a timer are sent per report at most: some 60 a
// second, however many events there are.
const samples = 16

// timer keeps a random sample of the times since the last report.
type timer struct {
	name string
	seen atomic.Int64
	kept [samples]atomic.Int64 // nanoseconds
}

func (t *timer) add(d time.Duration) {
	n := t.seen.Add(1)
	i := n - 1
	if n > samples {
		if i = rand.Int64N(n); i >= samples {
			return
		}
	}
	t.kept[i].Store(int64(d))
}

// flush sends the sample, with the rate that it was taken at: statsd makes the
// number of times from that. A time that is added at this very moment may be
// lost or sent twice.
func (t *timer) flush(to statsd.StatSender) {
	n := t.seen.Swap(0)
	rate := float32(1)
	if n > samples {
		rate = samples / float32(n)
	}
	for i := range min(n, samples) {
		to.TimingDuration(t.name, time.Duration(t.kept[i].Load()), rate) // what cannot be sent is lost
	}
}
