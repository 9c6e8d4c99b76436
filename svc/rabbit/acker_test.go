package rabbit

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A broker that does not read from its connection blocks no handler. What is contiguous is
// acknowledged at once.
func TestAckerAcknowledgesTheContiguous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, reads := newBroker(t), make(chan struct{})
		a := newAcker(func(tag uint64, multiple bool) error {
			<-reads
			return b.ack(tag, multiple)
		}, 1000)
		defer a.close()
		b.deliver(1000)
		var handlers sync.WaitGroup
		for tag := range uint64(1000) {
			handlers.Go(func() {
				b.finish(tag + 1)
				a.finish(tag + 1)
			})
		}
		handlers.Wait()
		close(reads)
		synctest.Wait()
		if len(b.open) > 0 || len(b.singles) > 0 {
			t.Errorf("%d deliveries are not acknowledged, %d are singly; want 0, 0", len(b.open), len(b.singles))
		}
	})
}

func TestAckerAcknowledgesWhatIsBehindOneThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t)
		a := newAcker(b.ack, 10)
		defer a.close()
		b.deliver(10)
		finish := func(tags ...uint64) {
			b.finish(tags...)
			for _, tag := range tags {
				a.finish(tag)
			}
			synctest.Wait()
		}
		owes := func(want ...uint64) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, b.tags(true)); diff != "" {
				t.Errorf("finished and not acknowledged (-want +got):\n%s", diff)
			}
		}
		finish(2, 4)
		<-time.After(ackDelay - 1)
		owes(2, 4)
		finish(3)
		<-time.After(1)
		owes()
		finish(6)
		owes(6)
		<-time.After(ackDelay)
		owes()
		<-time.After(time.Hour)
		finish(1) // acknowledges 1: 2 to 4 were acknowledged before
		owes()
		finish(7)
		owes(7)
		finish(5) // acknowledges 5 and 7: 6 was acknowledged before
		owes()
		if n := a.acked.Load(); n != 7 {
			t.Errorf("all up to %d are acknowledged, want 7", n)
		}
		if diff := cmp.Diff([]uint64{2, 3, 4, 6}, slices.Sorted(slices.Values(b.singles))); diff != "" {
			t.Errorf("acknowledged singly (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]uint64{8, 9, 10}, b.tags(false)); diff != "" {
			t.Errorf("still open (-want +got):\n%s", diff)
		}
	})
}

func TestAckerCloseFlushes(t *testing.T) {
	tests := map[string][]uint64{"nothing": nil, "contiguous": {1, 2, 3}, "outOfOrder": {5, 3}, "both": {1, 4, 2, 6}}
	for name, tags := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t)
				a := newAcker(b.ack, 6)
				b.deliver(6)
				b.finish(tags...)
				for _, tag := range tags {
					a.finish(tag)
				}
				begin := time.Now()
				a.close()
				if owed := b.tags(true); len(owed) > 0 || time.Since(begin) > 0 {
					t.Errorf("%v are not acknowledged after %v", owed, time.Since(begin))
				}
				for range 7 { // more than there is space for
					a.finish(99) // as by a handler that ends later; its acknowledgement is lost with the channel
				}
			})
		})
	}
}
