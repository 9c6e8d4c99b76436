package config

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/streadway/amqp"
)

// isBroker reports whether s is a broker's URL. Parameters that other clients know, such as
// connection_timeout, would silently have no effect.
func isBroker(s string) bool {
	if !isURL(s, "amqp", "amqps") {
		return false
	}
	u, _ := url.Parse(s)
	parameters, err := url.ParseQuery(u.RawQuery)
	for name, values := range parameters {
		seconds, err := strconv.ParseUint(values[0], 10, 16)
		if name != "heartbeat" || len(values) > 1 || err != nil || seconds == 0 {
			return false
		}
	}
	return err == nil
}

// vhost returns the virtual host of a broker's URL.
func vhost(broker string) string {
	uri, _ := amqp.ParseURI(broker)
	return uri.Vhost
}

// defaultPrefix returns a prefix for the keys in etcd that no other virtual host has: the
// events of two environments may have the same ids.
func defaultPrefix(vhost string) string {
	if vhost == "/" {
		return "/service/"
	}
	return "/" + url.PathEscape(vhost) + "/service/"
}

// isURL reports whether s is a URL with a host.
func isURL(s string, schemes ...string) bool {
	u, err := url.Parse(s)
	return err == nil && !hasSpace(s) && slices.Contains(schemes, u.Scheme) && u.Hostname() != "" && u.Fragment == "" &&
		(u.Port() == "" && !strings.HasSuffix(u.Host, ":") || isPort(u.Port()))
}

// hasUser reports whether a URL names a user.
func hasUser(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.User != nil
}

// isAddress reports whether s is the address of a server.
func isAddress(s string) bool {
	host, port, _ := net.SplitHostPort(s)
	return isListenAddress(s) && host != "" && port != "0"
}

// isListenAddress reports whether s is an address to listen at, which needs no host and can
// have port 0, any free one.
func isListenAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	return err == nil && !hasSpace(s) && !strings.ContainsAny(s, "/@") && (port == "0" || isPort(port))
}

// isPort reports whether a server can have this port, which may be the name of a service.
func isPort(port string) bool {
	n, err := net.LookupPort("tcp", port)
	return err == nil && n > 0
}

func hasSpace(s string) bool { return strings.ContainsFunc(s, unicode.IsSpace) }
