package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/streadway/amqp"
)

// ErrNoRabbit says how to get what this package cannot bring along.
var ErrNoRabbit = errors.New("RabbitMQ is not installed: " +
	"`apt-get install -y rabbitmq-server` (Debian), `brew install rabbitmq` (macOS), or use the servers of `docker-compose up -d`")

// RabbitOptions are what a test may want of a node beside RabbitMQ's defaults.
type RabbitOptions struct {
	Management bool    // the management plugin, which takes longer to start
	Join       *Rabbit // make a cluster with this node
	Config     string  // more lines of rabbitmq.conf
}

// Rabbit is one RabbitMQ node: processes and a folder of its own, on free ports
// of the loopback interface.
type Rabbit struct {
	options    RabbitOptions
	dir, bin   string // its own folder; the folder of RabbitMQ's scripts
	amqp, dist int    // ports
	management int
	epmd       int // the port of Erlang's port mapper, which a cluster shares
	mapper     *process
	proc       *process
}

// StartRabbit starts a node with its data in dir. It takes 3 to 5 s, and is
// ready when it returns.
func StartRabbit(ctx context.Context, dir string, o RabbitOptions) (*Rabbit, error) {
	bin, err := findRabbit()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	r := &Rabbit{options: o, dir: dir, bin: bin}
	if err := freePorts(&r.amqp, &r.dist, &r.management, &r.epmd); err != nil {
		return nil, err
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	if o.Join != nil {
		r.epmd = o.Join.epmd
	} else if err := r.startMapper(ctx); err != nil {
		r.Close()
		return nil, err
	}
	if err := r.Start(ctx); err != nil {
		r.Close()
		return nil, err
	}
	if o.Join != nil {
		if err := r.join(ctx); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// findRabbit returns the folder of the scripts. Debian's rabbitmq-server in
// PATH is a wrapper that runs as another user: the script behind it is meant.
func findRabbit() (string, error) {
	for _, dir := range []string{"/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, "rabbitmq-server")); err == nil {
			return dir, nil
		}
	}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", ErrNoRabbit
}

// prepare writes the node's configuration.
func (r *Rabbit) prepare() error {
	config := fmt.Sprintf("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = %d\n", r.management)
	plugins := "[rabbitmq_management].\n"
	if !r.options.Management {
		config, plugins = "", "[].\n"
	}
	files := map[string]string{
		"rabbitmq.conf":   config + r.options.Config,
		"enabled_plugins": plugins,
		".erlang.cookie":  "gophercon", // the nodes of a cluster share it
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(r.dir, ".erlang.cookie"), 0o400) // or Erlang refuses it
}

func (r *Rabbit) env() []string {
	return []string{
		"PATH=" + os.Getenv("PATH") + ":" + r.bin, "HOME=" + r.dir, "LANG=C.UTF-8",
		"RABBITMQ_NODENAME=" + r.Name(),
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", "RABBITMQ_NODE_PORT=" + strconv.Itoa(r.amqp),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(r.dist),
		"ERL_EPMD_PORT=" + strconv.Itoa(r.epmd), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_MNESIA_BASE=" + r.dir + "/data", "RABBITMQ_LOG_BASE=" + r.dir + "/log",
		"RABBITMQ_PID_FILE=" + r.dir + "/pid", "RABBITMQ_GENERATED_CONFIG_DIR=" + r.dir + "/generated",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + r.dir + "/enabled_plugins",
		"RABBITMQ_CONFIG_FILE=" + r.dir + "/rabbitmq.conf", "RABBITMQ_CONF_ENV_FILE=" + r.dir + "/none",
	}
}

// startMapper starts epmd, with which the node registers. RabbitMQ would start
// one by itself, and leave it behind.
func (r *Rabbit) startMapper(ctx context.Context) (err error) {
	path, err := exec.LookPath("epmd")
	if err != nil {
		return nil // then RabbitMQ finds its own
	}
	r.mapper, err = start(ctx, childSpec{Args: []string{path}, Env: r.env(), Dir: r.dir, Log: r.log()})
	return err
}

func (r *Rabbit) log() string { return filepath.Join(r.dir, "out.log") }

// Start starts the node again on its data, after Kill or Stop.
func (r *Rabbit) Start(ctx context.Context) (err error) {
	r.proc, err = start(ctx, childSpec{
		Args: []string{filepath.Join(r.bin, "rabbitmq-server")}, Env: r.env(), Dir: r.dir, Log: r.log(),
	})
	if err == nil {
		err = r.proc.until(ctx, func(context.Context) error {
			conn, err := amqp.Dial(r.URL())
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	if err != nil {
		return fmt.Errorf("start RabbitMQ: %w\n%s", err, tail(r.log()))
	}
	return nil
}

// join makes the node a member of a cluster.
func (r *Rabbit) join(ctx context.Context) error {
	for _, args := range [][]string{{"stop_app"}, {"join_cluster", r.options.Join.Name()}, {"start_app"}} {
		if _, err := r.Ctl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// Name is the node's name in Erlang.
func (r *Rabbit) Name() string { return fmt.Sprintf("rabbit%d@localhost", r.amqp) }

// URL is where clients connect, as guest.
func (r *Rabbit) URL() string { return fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", r.amqp) }

// Port is the AMQP port.
func (r *Rabbit) Port() int { return r.amqp }

// ManagementURL is where the management plugin answers.
func (r *Rabbit) ManagementURL() string { return fmt.Sprintf("http://127.0.0.1:%d", r.management) }

// Ctl runs rabbitmqctl against the node and returns what it prints. It takes a
// second or two.
func (r *Rabbit) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "rabbitmqctl"), append([]string{"-q", "-n", r.Name()}, args...)...)
	cmd.Env, cmd.Dir = r.env(), r.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("rabbitmqctl %q: %w: %s", args, err, out)
	}
	return string(out), nil
}

// Kill ends the node as a power cut does.
func (r *Rabbit) Kill() { r.proc.kill() }

// Stop ends the node in good order.
func (r *Rabbit) Stop(ctx context.Context) error {
	if _, err := r.Ctl(ctx, "stop"); err != nil {
		return err
	}
	return r.proc.wait(ctx)
}

// Pause freezes the node; Resume lets it go on.
func (r *Rabbit) Pause() error  { return r.proc.signal(syscall.SIGSTOP) }
func (r *Rabbit) Resume() error { return r.proc.signal(syscall.SIGCONT) }

// Close ends the node and removes its data. It may be called twice.
func (r *Rabbit) Close() error {
	if r.proc != nil {
		r.proc.kill()
	}
	if r.mapper != nil {
		r.mapper.kill()
	}
	return os.RemoveAll(r.dir)
}
