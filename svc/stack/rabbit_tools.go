package stack

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoRabbit says how to get what this package cannot bring along.
var ErrNoRabbit = errors.New("RabbitMQ is not installed: `apt-get install rabbitmq-server` (Debian), " +
	"`brew install rabbitmq` (macOS), or the former in a container of Docker's golang image")

// tools are the programs of an installed RabbitMQ.
type tools struct {
	server, ctl string
	epmd        string // Erlang's
	path        string // PATH with which they find each other
}

// packaged is where packages put RabbitMQ and Erlang. It comes before PATH: what
// Debian has there is a wrapper that starts the server as another user.
var packaged = []string{
	"/usr/lib/rabbitmq/bin",                 // Debian, Fedora
	"/opt/homebrew/sbin", "/usr/local/sbin", // Homebrew on arm64, amd64
	"/opt/homebrew/bin", "/usr/local/bin",
	"/opt/rabbitmq/sbin", // Docker's rabbitmq image
}

// findTools looks for RabbitMQ in those folders, in that order.
func findTools(dirs []string) (tools, error) {
	find := func(name string) string {
		for _, dir := range dirs {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path
			}
		}
		return ""
	}
	t := tools{
		server: find("rabbitmq-server"),
		ctl:    find("rabbitmqctl"),
		epmd:   find("epmd"),
		path:   strings.Join(dirs, string(filepath.ListSeparator)),
	}
	if t.server == "" || t.ctl == "" || t.epmd == "" {
		return tools{}, ErrNoRabbit
	}
	return t, nil
}
