package main

import (
	"log/slog"
	"os"

	"github.com/streamdal/gophercon2021/svc/config"
)

// newLog returns the log of the service, which names the role in every line.
func newLog(cfg config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel, ReplaceAttr: readable}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(os.Stderr, options)
	}
	return slog.New(handler).With("service", roles[cfg.Service].name)
}

// readable writes durations as text in JSON, too, and leaves out an empty hint.
func readable(_ []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	case a.Key == "hint" && a.Value.String() == "":
		return slog.Attr{}
	}
	return a
}
