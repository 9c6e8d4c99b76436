package main

import (
	"errors"
	"html/template"
	"strconv"

	"github.com/go-analyze/charts"
)

// The series have the colours that processed and skipped have in page.html.
var (
	lightChart = charts.GetTheme(charts.ThemeLight).WithBackgroundColor(charts.Color{}).
			WithSeriesColors([]charts.Color{charts.ColorFromHex("#15803d"), charts.ColorFromHex("#c2570c")}).
			WithTextColor(charts.ColorFromHex("#4b5563")).WithAxisSplitLineColor(charts.ColorFromHex("#d1d5db"))
	darkChart = charts.GetTheme(charts.ThemeDark).WithBackgroundColor(charts.Color{}).
			WithSeriesColors([]charts.Color{charts.ColorFromHex("#4ade80"), charts.ColorFromHex("#fb923c")}).
			WithTextColor(charts.ColorFromHex("#c7ccd6")).WithAxisSplitLineColor(charts.ColorFromHex("#3a4150"))
)

// drawChart draws the last seconds of a service as SVG.
func drawChart(r rates, theme charts.ColorPalette) template.HTML {
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 720, Height: 400})
	chart := charts.NewLineChartOptionWithData([][]float64{r.OK[:], r.Skipped[:]})
	chart.Theme = theme
	chart.Symbol = charts.Symbol{Shape: charts.SymbolNone}
	chart.LineStrokeWidth = 4
	chart.FillArea = charts.Ptr(true)
	chart.FillOpacity = 50
	chart.Padding = charts.Box{Top: 16, Left: 8, Right: 24, Bottom: 4, IsSet: true}

	// The axis ends at 10 or higher, so that low rates look low.
	highest := 10.0
	for i := range seconds {
		highest = max(highest, r.OK[i], r.Skipped[i])
	}
	chart.YAxis[0].Min, chart.YAxis[0].Max = charts.Ptr(0.0), charts.Ptr(niceAbove(highest))
	chart.YAxis[0].LabelCount = 3
	chart.YAxis[0].LabelFontStyle = charts.NewFontStyleWithSize(18)
	chart.ValueFormatter = func(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }
	chart.XAxis.LabelFontStyle = charts.NewFontStyleWithSize(18)
	chart.XAxis.Labels[0] = strconv.Itoa(seconds) + " s ago"
	chart.XAxis.Labels[seconds-1] = "now"
	chart.XAxis.LabelCount = 2
	err := painter.LineChart(chart)
	svg, err2 := painter.Bytes()
	if err = errors.Join(err, err2); err != nil {
		return template.HTML(template.HTMLEscapeString(err.Error()))
	}
	return template.HTML(svg)
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
