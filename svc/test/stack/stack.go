// Package stack starts real servers for tests and for the demo: RabbitMQ nodes, etcd
// members, and a sink for statsd counters. Tests can kill, pause and restart each of
// them. Each has its own folder and loopback ports, so any number of test binaries can
// run at the same time.
//
// Nothing needs to run beforehand. RabbitMQ must be installed (see [ErrNoRabbit]);
// etcd is compiled in.
//
// No server outlives the program that started it, not even a program that is killed
// with SIGKILL: see guard in guard.go. The package runs on any Unix.
package stack
