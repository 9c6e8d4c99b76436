package main

import (
	"slices"
	"sync"
	"time"

	"github.com/streamdal/gophercon2021/svc/test/stack"
)

// roles names the two services, in the order in which they are shown.
var roles = [...]string{"orders", "notify"}

// view is the content of the terminal and the page at one moment.
type view struct {
	Number   int // of the scene; 0: no scene has begun, or -hold
	Title    string
	Text     string
	Step     string // the present line of narration
	Outage   string // the server that is down, if any
	Services [len(roles)]serviceView
	Verdicts []string // of each scene: "", "now", "passed", "failed"
}

// serviceView holds the counters of a service in this scene.
type serviceView struct {
	Name        string
	OK, Skipped int
	Queued      string // messages ready in its queue; "?" while the broker is unreachable
	Rates       rates
}

// rates holds the events per second for each of the last seconds.
type rates struct{ OK, Skipped [seconds]float64 }

const seconds = 30

// status keeps the view. statsd counts from the start of the demo; the view shows counts
// from the start of the scene, or of a part of it.
type status struct {
	statsd *stack.Statsd

	mu     sync.Mutex
	view   view
	before map[string]int64 // counts at the start of the scene, or of its part
	rated  map[string]int64 // counts at the last call of sampleRates
	at     time.Time        // time of that call
}

func newStatus(statsd *stack.Statsd) *status {
	s := &status{statsd: statsd, at: time.Now(), view: view{
		Title:    "Getting ready",
		Text:     "Building the service, and starting RabbitMQ, etcd and statsd.",
		Verdicts: make([]string, len(scenes)),
	}}
	for i, role := range roles {
		s.view.Services[i] = serviceView{Name: role, Queued: "0"}
	}
	return s
}

// current returns a view that the caller may keep.
func (s *status) current() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view
	v.Verdicts = slices.Clone(v.Verdicts)
	for i, role := range roles {
		since := func(name string) int { return int(s.statsd.Count(name) - s.before[name]) }
		v.Services[i].OK, v.Services[i].Skipped = since(role+"_new_order_ok"), since(role+"_new_order_skipped")
	}
	return v
}

// counted returns how many events of this scene a service has processed and skipped.
func (s *status) counted(role string) (ok, skipped int) {
	service := s.current().Services[slices.Index(roles[:], role)]
	return service.OK, service.Skipped
}

func (s *status) update(change func(*view)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.view)
}

// countFromHere begins a part of the scene, with counters of 0.
func (s *status) countFromHere() {
	s.update(func(*view) { s.before = s.statsd.Counts() })
}

func (s *status) begin(number int) {
	s.countFromHere()
	scene := scenes[number-1]
	s.update(func(v *view) {
		v.Number, v.Title, v.Text, v.Step = number, scene.title, scene.text, ""
		v.Verdicts[number-1] = "now"
	})
}

func (s *status) finish(number int, passed bool) {
	verdict, step := "failed", "This scene failed."
	if passed {
		verdict, step = "passed", "This scene passed: "+scenes[number-1].promise+"."
	}
	s.update(func(v *view) { v.Outage, v.Verdicts[number-1], v.Step = "", verdict, step })
}

// sampleRates adds the rates since its last call to the view.
func (s *status) sampleRates() {
	s.update(func(v *view) {
		counts, now := s.statsd.Counts(), time.Now()
		elapsed := now.Sub(s.at).Seconds()
		for i, role := range roles {
			push := func(values *[seconds]float64, name string) {
				copy(values[:], values[1:])
				values[seconds-1] = float64(counts[name]-s.rated[name]) / elapsed
			}
			push(&v.Services[i].Rates.OK, role+"_new_order_ok")
			push(&v.Services[i].Rates.Skipped, role+"_new_order_skipped")
		}
		s.rated, s.at = counts, now
	})
}
