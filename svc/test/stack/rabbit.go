package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/streadway/amqp"
)

// RabbitOptions configure a node beyond a plain listener.
type RabbitOptions struct {
	Join *Rabbit // a running node to form a cluster with; it must be closed after this one

	// Paths of PEM files, for a TLS listener, see [Rabbit.TLSURL]. With CACert,
	// clients must present a certificate from that authority.
	Cert, Key, CACert string
}

// Rabbit is a private RabbitMQ node. Its user is guest, with the password guest.
type Rabbit struct {
	*Server
	tools  tools
	node   string // its Erlang name
	cookie string // the secret that the nodes of a cluster and rabbitmqctl share

	amqp, tls, dist, epmd Port
}

// StartRabbit starts a node in dir, a folder that is new or empty, and returns
// when it answers AMQP. That takes 3 to 5 s, more on a busy machine.
func StartRabbit(ctx context.Context, dir string, options RabbitOptions) (*Rabbit, error) {
	tools, err := findTools(slices.Concat(packaged, filepath.SplitList(os.Getenv("PATH"))))
	if err != nil {
		return nil, err
	}
	server, err := newServer("rabbitmq", dir)
	if err != nil {
		return nil, fmt.Errorf("start rabbitmq: %w", err)
	}
	r := &Rabbit{Server: server, tools: tools}
	if err := r.start(ctx, options); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Rabbit) start(ctx context.Context, options RabbitOptions) error {
	ports := []*Port{&r.amqp, &r.dist}
	if options.Cert != "" {
		ports = append(ports, &r.tls)
	}
	if options.Join == nil {
		ports = append(ports, &r.epmd)
	}
	if err := r.reserve(ports...); err != nil {
		return fmt.Errorf("start rabbitmq: %w", err)
	}
	r.node = fmt.Sprintf("rabbit-%d@localhost", r.amqp.number)
	r.cookie = rand.Text()
	if first := options.Join; first != nil {
		r.cookie, r.epmd = first.cookie, first.epmd
	}
	if err := r.writeConfig(options); err != nil {
		return fmt.Errorf("configure rabbitmq: %w", err)
	}
	if options.Join == nil {
		epmd, err := r.startEpmd(ctx)
		if err != nil {
			return err
		}
		r.owned = append(r.owned, epmd)
	}
	r.command = &exec.Cmd{Path: r.tools.server, Args: []string{r.tools.server}, Env: r.env()}
	r.ready = r.awaitAMQP
	return r.Start(ctx)
}

// URL returns the URL for AMQP clients.
func (r *Rabbit) URL() string { return "amqp://guest:guest@" + r.amqp.Addr() + "/" }

// TLSURL returns the URL for AMQP clients with TLS.
func (r *Rabbit) TLSURL() string { return "amqps://guest:guest@" + r.tls.Addr() + "/" }

// Name returns the node's Erlang name, which rabbitmqctl prints too.
func (r *Rabbit) Name() string { return r.node }

// Port returns the port of 127.0.0.1 for AMQP clients.
func (r *Rabbit) Port() int { return r.amqp.number }

// Ctl runs rabbitmqctl on the node and returns what it prints, without
// headings. One run takes about a second.
func (r *Rabbit) Ctl(ctx context.Context, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := exec.Command(r.tools.ctl, append([]string{"--silent", "--node", r.node}, args...)...)
	cmd.Env, cmd.Dir = r.env(), r.dir
	cmd.Stdout, cmd.Stderr = &out, &complaint
	p, err := start(cmd)
	if err != nil {
		return "", fmt.Errorf("rabbitmqctl %s: %w", args[0], err)
	}
	if err := p.wait(ctx); err != nil {
		return "", fmt.Errorf("rabbitmqctl %s: %w", args[0], errors.Join(err, p.kill()))
	}
	if p.err != nil {
		return "", fmt.Errorf("rabbitmqctl %s: %w: %s", args[0], p.err, bytes.TrimSpace(complaint.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}

// Queues returns a column of `rabbitmqctl list_queues`, by the name of the queue. The
// column messages includes unacknowledged deliveries.
func (r *Rabbit) Queues(ctx context.Context, column string) (map[string]string, error) {
	out, err := r.Ctl(ctx, "list_queues", "name", column)
	values := make(map[string]string)
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		values[name] = value
	}
	return values, err
}

// awaitAMQP waits for an AMQP handshake: the node accepts connections earlier
// than it can serve them.
func (r *Rabbit) awaitAMQP(ctx context.Context, p *process) error {
	return p.poll(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.amqp.Addr())
		if err != nil {
			return err
		}
		defer raw.Close()
		deadline, _ := ctx.Deadline()
		raw.SetDeadline(deadline)
		conn, err := amqp.Open(raw, amqp.Config{
			SASL:  []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "guest"}},
			Vhost: "/",
		})
		if errors.Is(err, amqp.ErrCredentials) {
			return nil // the node serves, but Config has other users
		}
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// startEpmd starts Erlang's port mapper, where nodes look each other up, for this node
// and for the nodes that join it. Erlang itself would start one for the whole machine
// and leave it behind.
func (r *Rabbit) startEpmd(ctx context.Context) (*Server, error) {
	epmd, err := newServer("epmd", filepath.Join(r.dir, "epmd"))
	if err != nil {
		return nil, fmt.Errorf("start epmd: %w", err)
	}
	epmd.command = &exec.Cmd{Path: r.tools.epmd, Args: []string{r.tools.epmd}, Env: r.env()}
	epmd.ready = func(ctx context.Context, p *process) error {
		return p.poll(ctx, func(ctx context.Context) error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.epmd.Addr())
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	if err := epmd.Start(ctx); err != nil {
		return nil, errors.Join(err, epmd.Close())
	}
	return epmd, nil
}
