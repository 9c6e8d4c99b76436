package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// page is the live page: what Graphite would show, and the narration. All of it
// is drawn here and pushed whole, twice a second, as a server-sent event.
type page struct {
	url    string
	show   *show
	server *http.Server
	quit   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	main    []byte        // what is inside <main>
	changed chan struct{} // closed, and replaced, with every new main
}

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"waiting": func(n int64) string { return waiting(n, "%s") },
	"inc":     func(i int) int { return i + 1 },
	"scene":   func(i int) string { return scenes[i].title },
}).Parse(pageSource))

// firstPort and the ones after it are tried for the page.
const firstPort, ports = 8080, 100

func startPage(show *show) (*page, error) {
	listener, err := listenNear(firstPort)
	if err != nil {
		return nil, fmt.Errorf("start the page: %w", err)
	}
	p := &page{
		url:  fmt.Sprintf("http://localhost:%d", listener.Addr().(*net.TCPAddr).Port),
		show: show, quit: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.serveAll)
	mux.HandleFunc("GET /events", p.serveEvents)
	p.server = &http.Server{Handler: mux}
	p.draw()
	go p.run()
	go p.server.Serve(listener) // until close
	return p, nil
}

func listenNear(port int) (listener net.Listener, err error) {
	for n := range ports {
		listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+n))
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return listener, err
}

func (p *page) close() {
	close(p.quit)
	<-p.done
	p.server.Close()
}

func (p *page) run() {
	defer close(p.done)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.draw()
		case <-p.quit:
			return
		}
	}
}

// draw makes the content anew.
func (p *page) draw() {
	v := p.show.current()
	type panel struct {
		serviceView
		Light, Dark template.HTML
	}
	var panels []panel
	for _, service := range v.Services {
		panels = append(panels, panel{service, drawChart(service.Rates, lightChart), drawChart(service.Rates, darkChart)})
	}
	var b bytes.Buffer
	err := pageTemplate.ExecuteTemplate(&b, "main", struct {
		view
		Scenes int
		Panels []panel
	}{v, len(scenes), panels})
	if err != nil {
		fmt.Fprintf(&b, "draw the page: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.main = b.Bytes()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *page) current() (main []byte, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.main, p.changed
}

func (p *page) serveAll(w http.ResponseWriter, _ *http.Request) {
	main, _ := p.current()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	pageTemplate.ExecuteTemplate(w, "page", template.HTML(main))
}

func (p *page) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for {
		main, changed := p.current()
		// A line of an event is a line of the content.
		fmt.Fprintf(w, "data: %s\n\n", strings.ReplaceAll(string(main), "\n", "\ndata: "))
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
