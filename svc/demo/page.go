package main

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// The live page shows the curves that Graphite would show, and the narration. Its script
// fetches the content of the <main> element twice a second.

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"lightChart": func(r rates) (template.HTML, error) { return drawChart(r, lightTheme) },
	"darkChart":  func(r rates) (template.HTML, error) { return drawChart(r, darkTheme) },
	"queued":     queued,
	"inc":        func(i int) int { return i + 1 },
	"scene":      func(i int) string { return scenes[i].title },
}).Parse(pageSource))

// startPage serves the page on port 8080, or on any free port if that one is in use, until
// the caller calls stop.
func startPage(status *status) (url string, stop func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:8080")
	if errors.Is(err, syscall.EADDRINUSE) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", nil, fmt.Errorf("start the page: %w", err)
	}
	serve := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if err := pageTemplate.ExecuteTemplate(w, name, status.current()); err != nil {
				fmt.Fprintf(w, "draw the page: %v", err)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", serve("page"))
	mux.HandleFunc("GET /main", serve("main"))
	server := &http.Server{Handler: mux}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) }) // until Close
	stop = func() error {
		defer serving.Wait()
		return server.Close()
	}
	return fmt.Sprintf("http://localhost:%d", listener.Addr().(*net.TCPAddr).Port), stop, nil
}
