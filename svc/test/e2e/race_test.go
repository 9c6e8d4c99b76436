//go:build race

package e2e

const raceEnabled = true // the service is built with the race detector, too
