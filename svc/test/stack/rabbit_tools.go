package stack

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoRabbit reports that RabbitMQ is not installed, and says how to install it.
var ErrNoRabbit = errors.New("RabbitMQ is not installed: `apt-get install rabbitmq-server` (Debian), " +
	"`brew install rabbitmq` (macOS), or the former in a container of Docker's golang image")

// tools holds the paths of the programs of an installed RabbitMQ.
type tools struct {
	server, ctl string
	epmd        string // Erlang's
	path        string // the PATH with which the programs find each other
}

// packaged lists the folders into which packages install RabbitMQ and Erlang. They come
// before PATH, where Debian has a wrapper that starts the server as another user.
var packaged = []string{
	"/usr/lib/rabbitmq/bin",                 // Debian, Fedora
	"/opt/homebrew/sbin", "/usr/local/sbin", // Homebrew on arm64, amd64
	"/opt/homebrew/bin", "/usr/local/bin",
	"/opt/rabbitmq/sbin", // Docker's rabbitmq image
}

// findTools looks for RabbitMQ and Erlang in the folders, in their order.
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
