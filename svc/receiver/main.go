// Receiver takes the events that a service posts to its WEBHOOK_URL, and performs the
// effect of each once, although the service may post it several times: after a
// crash, or when an answer was lost.
//
//	go run ./svc/receiver
//	cd svc && ENABLE_ETCD=true WEBHOOK_URL=http://localhost:8090 SERVICE_NAME=orders go run *.go
//	curl localhost:8090    says how many effects there were
//
// The rule: perform the effect and store the Idempotency-Key in one transaction; answer
// a repeated key as it was answered the first time; refuse a token below the one stored
// with the same key, since its sender has lost the claim. The key alone makes this effect
// happen once. The token tells a sender that it has lost the claim, and would keep it from
// an effect that cannot be part of the transaction. The store is bbolt. Any database with
// transactions serves as well, if it is the one that the effect goes to.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
)

var (
	keys   = []byte("keys")   // the token of each Idempotency-Key whose effect was performed
	orders = []byte("orders") // the effects: each event's body, numbered
)

var errOldToken = errors.New("a newer token was seen")

func main() {
	addr := flag.String("addr", "localhost:8090", "where to listen")
	path := flag.String("db", "receiver.db", "the file of the store")
	delay := flag.Duration("delay", 0, "how long each answer takes, so that a service can be killed meanwhile")
	flag.Parse()

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	store, err := open(*path)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("listening at http://%s", listener.Addr())
	http.HandleFunc("POST /", receive(store, *delay))
	http.HandleFunc("GET /", count(store))
	log.Fatal(http.Serve(listener, nil))
}

func open(path string) (*bolt.DB, error) {
	store, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s (does another receiver have it open?): %w", path, err)
	}
	return store, store.Update(func(tx *bolt.Tx) error {
		_, err1 := tx.CreateBucketIfNotExists(keys)
		_, err2 := tx.CreateBucketIfNotExists(orders)
		return errors.Join(err1, err2)
	})
}

// receive answers posts after a delay: 200 once the effect of a key is durable, 412 to an
// old token, 500 if the store fails.
func receive(store *bolt.DB, delay time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := []byte(r.Header.Get("Idempotency-Key"))
		token, err := strconv.ParseUint(r.Header.Get("X-Fencing-Token"), 10, 64)
		body, err2 := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
		if err = errors.Join(err, err2); err != nil || len(key) == 0 {
			http.Error(w, "not a post of svc", http.StatusBadRequest)
			return
		}

		repeated := false
		err = store.Update(func(tx *bolt.Tx) error {
			if seen := tx.Bucket(keys).Get(key); seen != nil {
				repeated = true
				if token < binary.BigEndian.Uint64(seen) {
					return errOldToken
				}
			} else if err := process(tx, body); err != nil {
				return err
			}
			// A crash here, before the commit, leaves neither the effect nor the key.
			return tx.Bucket(keys).Put(key, binary.BigEndian.AppendUint64(nil, token))
		})

		log.Printf("%s token=%d repeated=%t error=%v", key, token, repeated, err)
		time.Sleep(delay)
		switch {
		case errors.Is(err, errOldToken):
			http.Error(w, err.Error(), http.StatusPreconditionFailed)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// process is the effect. Put your own code here; it writes to the same transaction.
func process(tx *bolt.Tx, body []byte) error {
	b := tx.Bucket(orders)
	n, _ := b.NextSequence()
	return b.Put(binary.BigEndian.AppendUint64(nil, n), body)
}

// count says how many effects there were.
func count(store *bolt.DB) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		store.View(func(tx *bolt.Tx) error {
			fmt.Fprintln(w, tx.Bucket(orders).Stats().KeyN)
			return nil
		})
	}
}
