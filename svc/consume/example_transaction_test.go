package consume_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/streamdal/gophercon2021/svc/consume"
	"github.com/streamdal/gophercon2021/svc/test/consumetest"
	bolt "go.etcd.io/bbolt"
)

// A handler that writes to one database stores the idempotency key in the transaction of its
// effect. That closes the crash window: an event that comes again after a crash between the
// work and its record has no second effect.
func ExampleJob_Key() {
	db, closeDB := openExampleDB("done", "orders")
	defer closeDB()

	processOrder := func(ctx context.Context, job consume.Job) error {
		return db.Update(func(tx *bolt.Tx) error {
			done, orders := tx.Bucket([]byte("done")), tx.Bucket([]byte("orders"))
			key := []byte(job.Key())
			if done.Get(key) != nil {
				fmt.Println(job.Key(), "was done before")
				return nil
			}
			n, _ := orders.NextSequence() // the effect: the order gets a number
			fmt.Println(job.Key(), "is order number", n)
			// A crash before the commit leaves neither the effect nor the key.
			return errors.Join(orders.Put(fmt.Append(nil, n), job.Body), done.Put(key, []byte("1")))
		})
	}
	order := consumetest.Message{Body: `{"type":"new_order","id":"7"}`}
	show(context.Background(), processOrder, order)
	show(context.Background(), processOrder, order) // as after a crash
	// Output:
	// orders/7 is order number 1
	// count new_order_ok
	// acknowledged
	// orders/7 was done before
	// count new_order_ok
	// acknowledged
}

// openExampleDB opens an empty database with these buckets, and returns what removes it.
func openExampleDB(buckets ...string) (*bolt.DB, func()) {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, nil)
	if err != nil {
		panic(err)
	}
	err = db.Update(func(tx *bolt.Tx) (err error) {
		for _, name := range buckets {
			_, e := tx.CreateBucket([]byte(name))
			err = errors.Join(err, e)
		}
		return err
	})
	if err != nil {
		panic(err)
	}
	return db, func() { db.Close(); os.RemoveAll(dir) }
}
