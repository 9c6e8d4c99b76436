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

// page is the live page, with the curves that Graphite would show and the narration.
// The server draws its whole content twice a second and sends it as a server-sent
// event.
type page struct {
	url    string
	status *status
	server *http.Server

	drawing sync.Mutex // the charts share fonts
}

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"queued": func(n int64) string { return queued(n, "%s") },
	"inc":    func(i int) int { return i + 1 },
	"scene":  func(i int) string { return scenes[i].title },
}).Parse(pageSource))

// The page tries firstPort and the ports after it.
const firstPort, ports = 8080, 100

func startPage(status *status) (*page, error) {
	listener, err := listenNear(firstPort)
	if err != nil {
		return nil, fmt.Errorf("start the page: %w", err)
	}
	p := &page{url: fmt.Sprintf("http://localhost:%d", listener.Addr().(*net.TCPAddr).Port), status: status}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.servePage)
	mux.HandleFunc("GET /events", p.serveEvents)
	p.server = &http.Server{Handler: mux}
	go p.server.Serve(listener) // until Close
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

func (p *page) Close() error { return p.server.Close() }

// draw returns the content of the <main> element.
func (p *page) draw() string {
	p.drawing.Lock()
	defer p.drawing.Unlock()
	v := p.status.current()
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
	return b.String()
}

func (p *page) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	pageTemplate.ExecuteTemplate(w, "page", template.HTML(p.draw()))
}

func (p *page) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		// Each line of the content becomes a data line of the event.
		fmt.Fprintf(w, "data: %s\n\n", strings.ReplaceAll(p.draw(), "\n", "\ndata: "))
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
