package rabbit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/streadway/amqp"
)

// Few deliveries are held until as many have been finished in half a second, and when the
// handlers are slow. A single one is held while an unreadable message is looked for, or one
// that ends its process.
func TestHowManyAreHeld(t *testing.T) {
	const low, most = 4, 100
	synctest.Test(t, func(t *testing.T) {
		slow := false
		c := &consumer{Config: Config{Low: low, Prefetch: most, Slow: func() bool { return slow }}}
		s := &subscription{acker: &acker{}}
		d := &Delivery{msg: amqp.Delivery{Redelivered: true, Headers: amqp.Table{"x-delivery-count": int64(5)}}}
		began, stuck := time.Now(), false
		// arrive has deliveries arrive until their level changes, or n of them have arrived. Those
		// before the last Low ones are finished.
		arrive := func(n int, pause time.Duration, want int) {
			t.Helper()
			before := s.level
			for range n {
				<-time.After(pause)
				d.msg.DeliveryTag++
				if tag := d.msg.DeliveryTag; tag > low && !stuck {
					s.acker.acked.Store(tag - low)
				}
				if s.level = c.next(s, d); s.level != before {
					s.since = time.Time{} // by the next consumer
					break
				}
			}
			if s.level != want {
				t.Fatalf("after %v %d are held, want %d", time.Since(began), s.level, want)
			}
		}
		s.level = 1
		c.oneByOne = 2
		arrive(2, 0, 1)
		c.oneByOne = 0
		arrive(2, 0, 1) // they have come back often
		d.msg.Redelivered = false
		arrive(1, 0, low)
		arrive(low, 0, low)                      // these are not finished yet
		arrive(10*low, time.Second/low/2, low)   // one each 125 ms: just too slow
		arrive(2*low, time.Second/low/2-1, most) // just fast enough
		arrive(most, time.Second, most)          // a pause between events does not matter
		slow = true
		arrive(1, 0, low)
		arrive(10*low, 0, low)
		slow, stuck = false, true // the others go on
		arrive(10*low, 0, low)
		stuck = false
		<-time.After(time.Second)
		arrive(low, 0, low)
		arrive(2*low, 0, most)
	})
}
