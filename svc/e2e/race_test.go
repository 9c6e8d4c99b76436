//go:build race

package e2e

const raceEnabled = true // build the service with the race detector, too
