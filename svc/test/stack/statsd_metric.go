package stack

import (
	"iter"
	"math"
	"strconv"
	"strings"
)

// metric is one line of a packet: `name:value|kind` or `name:value|kind|@rate`.
type metric struct {
	name  string
	value float64
	kind  string // c counter, ms timer, g gauge
	rate  float64
}

// count returns the number of events that a sampled counter stands for.
func (m metric) count() int64 { return int64(math.Round(m.value / m.rate)) }

// parseMetrics yields the metrics of a packet, and skips lines that are not metrics.
func parseMetrics(packet string) iter.Seq[metric] {
	return func(yield func(metric) bool) {
		for line := range strings.SplitSeq(packet, "\n") {
			if m, ok := parseMetric(line); ok && !yield(m) {
				return
			}
		}
	}
}

func parseMetric(line string) (metric, bool) {
	name, rest, ok := strings.Cut(line, ":")
	fields := strings.Split(rest, "|")
	if !ok || name == "" || len(fields) < 2 {
		return metric{}, false
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		return metric{}, false
	}
	m := metric{name: name, value: value, kind: fields[1], rate: 1}
	for _, field := range fields[2:] {
		if rate, sampled := strings.CutPrefix(field, "@"); sampled {
			if m.rate, err = strconv.ParseFloat(rate, 64); err != nil || m.rate <= 0 {
				return metric{}, false
			}
		}
	}
	return m, true
}
