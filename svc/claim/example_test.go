package claim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/claim"
	"github.com/streamdal/gophercon2021/svc/etcd"
)

// This example processes ids in a loop, without a broker. However many processes run
// it, each id is processed once.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)

	client, err := etcd.Dial(ctx, etcd.Server{Endpoints: []string{shared.Endpoint()}}, log)
	if err != nil {
		panic(err)
	}
	defer client.Close()
	claims := claim.NewEtcd(client, claim.Options{
		Role: "example", TTL: 10 * time.Second, Window: 24 * time.Hour, MaxIDs: 1_000_000,
		CloseTimeout: time.Second, Log: log,
	})
	if err := claims.Load(ctx); err != nil { // reads the ids that were processed before
		panic(err)
	}
	var running sync.WaitGroup
	running.Go(func() { claims.Run(ctx) })

	for _, id := range []string{"a", "b", "a"} {
		c, err := claims.Claim(ctx, id)
		if errors.Is(err, claim.ErrDone) {
			fmt.Println(id, "skipped")
			continue
		}
		if err != nil {
			panic(err)
		}
		// Do the work here. It passes c.Token to the systems that it changes. It must stop when
		// c.Held ends: then claims.Reclaim waits until the id may be worked on again, and
		// claims.Release gives it up.
		fmt.Println(id, "processed")
		if err := claims.Complete(c); err != nil && !errors.Is(err, claim.ErrDone) { // ErrDone: another process was faster
			panic(err)
		}
	}

	stop()
	running.Wait() // the session is revoked
	// Output:
	// a processed
	// b processed
	// a skipped
}
