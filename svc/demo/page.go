package main

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/go-analyze/charts"
)

// The live page shows the curves that Graphite would show, and the narration. Its script
// fetches the content of the <main> element twice a second.

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"lightChart": func(r rates) (template.HTML, error) { return drawChart(r, lightTheme) },
	"darkChart":  func(r rates) (template.HTML, error) { return drawChart(r, darkTheme) },
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
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	server.Start()
	stop = func() error {
		server.CloseClientConnections()
		server.Close() // waits until nothing is served any more
		return nil
	}
	return fmt.Sprintf("http://localhost:%d", listener.Addr().(*net.TCPAddr).Port), stop, nil
}

// The colours are those that processed, skipped, soft and line have in page.html.
var (
	lightTheme = theme(charts.ThemeLight, "#15803d", "#c2570c", "#4b5563", "#d1d5db")
	darkTheme  = theme(charts.ThemeDark, "#4ade80", "#fb923c", "#c7ccd6", "#3a4150")
)

func theme(base, processed, skipped, text, line string) charts.ColorPalette {
	series := []charts.Color{charts.ColorFromHex(processed), charts.ColorFromHex(skipped)}
	return charts.GetTheme(base).WithBackgroundColor(charts.Color{}).WithSeriesColors(series).
		WithTextColor(charts.ColorFromHex(text)).WithAxisSplitLineColor(charts.ColorFromHex(line))
}

// drawing guards the fonts, which all charts share.
var drawing sync.Mutex

// drawChart draws the last seconds of a service as SVG.
func drawChart(r rates, colours charts.ColorPalette) (template.HTML, error) {
	drawing.Lock()
	defer drawing.Unlock()

	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 720, Height: 400})
	chart := charts.NewLineChartOptionWithData([][]float64{r.OK[:], r.Skipped[:]})
	chart.Theme = colours
	chart.Symbol = charts.Symbol{Shape: charts.SymbolNone}
	chart.LineStrokeWidth = 4
	chart.FillArea = charts.Ptr(true)
	chart.FillOpacity = 50
	chart.Padding = charts.Box{Top: 16, Left: 8, Right: 24, Bottom: 4, IsSet: true}

	// The axis ends at 10 or higher, so that low rates look low.
	highest := max(10, slices.Max(r.OK[:]), slices.Max(r.Skipped[:]))
	chart.YAxis[0].Min, chart.YAxis[0].Max = charts.Ptr(0.0), charts.Ptr(niceAbove(highest))
	chart.YAxis[0].LabelCount = 3
	chart.YAxis[0].LabelFontStyle = charts.NewFontStyleWithSize(18)
	chart.ValueFormatter = func(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }
	chart.XAxis.LabelFontStyle = charts.NewFontStyleWithSize(18)
	chart.XAxis.Labels[0] = strconv.Itoa(seconds) + " s ago"
	chart.XAxis.Labels[seconds-1] = "now"
	chart.XAxis.LabelCount = 2

	if err := painter.LineChart(chart); err != nil {
		return "", err
	}
	svg, err := painter.Bytes()
	return template.HTML(svg), err
}

// niceAbove returns the lowest of 10, 20, 50, 100, ... that is not below v.
func niceAbove(v float64) float64 {
	for unit := 10.0; ; unit *= 10 {
		for _, top := range []float64{unit, 2 * unit, 5 * unit} {
			if v <= top {
				return top
			}
		}
	}
}
