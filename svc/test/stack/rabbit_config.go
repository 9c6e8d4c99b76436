package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The files of a node, in its folder.
const (
	configFile  = "rabbitmq.conf"
	pluginsFile = "enabled_plugins"
	noFile      = "none" // never exists: replaces files of the machine's own installation
)

// env returns the whole environment of the node and of rabbitmqctl. Nothing is inherited
// from our environment, which may configure another node, or from the machine's
// configuration in /etc.
func (r *Rabbit) env() []string {
	file := func(name string) string { return filepath.Join(r.dir, name) }
	return []string{
		"PATH=" + r.tools.path,
		"HOME=" + r.dir, // holds the cookie
		"LANG=C.UTF-8",
		"ERL_EPMD_PORT=" + fmt.Sprint(r.epmd.number),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		// Erlang must not start a port mapper: startEpmd starts one.
		"ERL_ZFLAGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
		// The start script then executes Erlang in its own process, so that our
		// signals reach the node itself. It has no other effect.
		"RUNNING_UNDER_SYSTEMD=true",
		"RABBITMQ_NODENAME=" + r.node,
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + fmt.Sprint(r.amqp.number),
		"RABBITMQ_DIST_PORT=" + fmt.Sprint(r.dist.number),
		"RABBITMQ_CTL_DIST_PORT_MIN=0", // any
		"RABBITMQ_CTL_DIST_PORT_MAX=0",
		"RABBITMQ_MNESIA_BASE=" + file("data"),
		"RABBITMQ_LOG_BASE=" + r.dir,
		"RABBITMQ_LOGS=-", // standard output
		"RABBITMQ_PID_FILE=" + file("pid"),
		"RABBITMQ_CONFIG_FILE=" + file(configFile),
		"RABBITMQ_CONFIG_FILES=" + file(noFile),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + file(noFile),
		"RABBITMQ_CONF_ENV_FILE=" + file(noFile),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + file(pluginsFile),
	}
}

func (r *Rabbit) writeConfig(options RabbitOptions) error {
	conf := new(strings.Builder)
	if options.Cert != "" {
		fmt.Fprintf(conf, "listeners.ssl.1 = %s\n", r.tls.Addr())
		fmt.Fprintf(conf, "ssl_options.certfile = %s\nssl_options.keyfile = %s\n", options.Cert, options.Key)
	}
	if options.CACert != "" {
		fmt.Fprintf(conf, "ssl_options.cacertfile = %s\n", options.CACert)
		fmt.Fprintf(conf, "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n")
	}
	if first := options.Join; first != nil {
		// A node that starts without data joins the nodes in its configuration.
		fmt.Fprintf(conf, "cluster_formation.peer_discovery_backend = classic_config\n")
		for i, node := range []string{first.node, r.node} {
			fmt.Fprintf(conf, "cluster_formation.classic_config.nodes.%d = %s\n", i+1, node)
		}
	}

	for name, content := range map[string]string{
		configFile: conf.String(), pluginsFile: "[].\n", ".erlang.cookie": r.cookie,
	} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o400); err != nil {
			return err
		}
	}
	return nil
}
