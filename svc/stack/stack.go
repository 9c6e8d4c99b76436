// Package stack starts real servers for tests and for the demo: RabbitMQ nodes,
// etcd, and a sink for statsd counters. Each has a folder and loopback ports of
// its own, so that any number of test binaries can run side by side, and each
// can be killed, paused and started again, for that is what they are here for.
//
// Nothing has to run beforehand. RabbitMQ has to be installed (see
// [ErrNoRabbit]); etcd is compiled in.
//
// No server outlives the program that started it, not even when that program
// dies by SIGKILL: see guard in guard.go. The package needs a Unix, and no
// particular one.
package stack
