package etcd

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// Watch opens a watch of the keys with a prefix, from a revision on. The watch ends with
// ctx, or when its member loses the others. While one try is unanswered another is made: a
// frozen member keeps its connections and answers nothing. The first watch to open is
// used, the others are cancelled. An error is the cause of ctx's end.
func (c *Client) Watch(ctx context.Context, prefix string, from int64) (clientv3.WatchChan, error) {
	type try struct {
		n       int
		changes clientv3.WatchChan
	}
	ctx = clientv3.WithRequireLeader(ctx)
	opened := make(chan try, maxTries)
	var cancels []context.CancelFunc
	tick := time.NewTicker(resendAfter / 2)
	defer tick.Stop()
	for {
		if n := len(cancels); n < maxTries {
			// The metadata gives each try a stream of its own, and so perhaps another member.
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "try", strconv.Itoa(n)))
			cancels = append(cancels, cancel)
			c.tries.Go(func() {
				opened <- try{n, c.Raw.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from))}
			})
		}
		select {
		case first := <-opened:
			for n, cancel := range cancels {
				if n != first.n {
					cancel()
				}
			}
			return first.changes, nil
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
