package main

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// The two services, in the order in which they are shown.
var roles = [...]string{"orders", "notify"}

// view is what is to be seen at one moment, on the terminal and on the page.
type view struct {
	Number   int // of the scene, 0: none yet
	Title    string
	Promise  string
	Text     string
	Step     string // what happens right now
	Outage   string // what is down, if anything is
	Services [len(roles)]serviceView
	Verdicts []string // of each scene: "", "holds", "fails", "left out", "now"
}

// serviceView is what a service has done in this scene. Waiting is the number of
// messages ready in its queue, -1 if unknown.
type serviceView struct {
	Name                 string
	OK, Skipped, Waiting int64
	Rates                rates
}

// rates are events per second, of each of the last seconds.
type rates struct{ OK, Skipped [seconds]float64 }

const seconds = 30

// show keeps the view. Counters come in as sums since the start, as statsd has
// them, and are shown as sums of the scene.
type show struct {
	mu     sync.Mutex
	view   view
	sums   map[string]int64 // since the start
	before map[string]int64 // at the begin of the scene
	rated  map[string]int64 // at the last sample of the rates
	at     time.Time        // of that sample
}

func newShow() *show {
	s := &show{at: time.Now()}
	s.view.Verdicts = make([]string, len(scenes))
	s.view.Title = "Getting ready"
	s.view.Text = "Building the service, and starting RabbitMQ, etcd and statsd."
	for i, role := range roles {
		s.view.Services[i] = serviceView{Name: role}
	}
	return s
}

// current returns a view that the caller may keep.
func (s *show) current() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view
	v.Verdicts = slices.Clone(v.Verdicts)
	return v
}

func (s *show) update(change func(*view)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.view)
}

func (s *show) begin(number int, scene scene) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = maps.Clone(s.sums)
	v := &s.view
	v.Number, v.Title, v.Promise = number, scene.title, scene.promise
	v.Text, v.Step = scene.text, ""
	v.Verdicts[number-1] = "now"
	s.count()
}

func (s *show) finish(number int, holds bool) {
	s.update(func(v *view) {
		v.Outage = ""
		v.Verdicts[number-1], v.Step = "holds", "This scene holds: "+v.Promise+"."
		if !holds {
			v.Verdicts[number-1], v.Step = "fails", "This scene does not hold."
		}
	})
}

func (s *show) leaveOut(number int) {
	s.update(func(v *view) { v.Verdicts[number-1] = "left out" })
}

// sample takes in the sums of statsd, and once a second the rates.
func (s *show) sample(sums map[string]int64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sums = sums
	s.count()
	passed := now.Sub(s.at).Seconds()
	if passed < 1 {
		return
	}
	for i, role := range roles {
		rates := &s.view.Services[i].Rates
		push := func(values *[seconds]float64, name string) {
			copy(values[:], values[1:])
			values[seconds-1] = float64(sums[name]-s.rated[name]) / passed
		}
		push(&rates.OK, role+"_new_order_ok")
		push(&rates.Skipped, role+"_new_order_skipped")
	}
	s.rated, s.at = sums, now
}

// count brings the scene's counters up to date. It is called with the lock held.
func (s *show) count() {
	for i, role := range roles {
		ok, skipped := role+"_new_order_ok", role+"_new_order_skipped"
		s.view.Services[i].OK = s.sums[ok] - s.before[ok]
		s.view.Services[i].Skipped = s.sums[skipped] - s.before[skipped]
	}
}

// since returns what sums say about a counter, since the begin of the scene.
func (s *show) since(sums map[string]int64, name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sums[name] - s.before[name]
}
