package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// checkAMQP returns what is wrong with a broker's URL. Parameters that other
// clients know, such as connection_timeout, would silently have no effect.
func checkAMQP(s string) error {
	if err := checkURL(s, "amqp", "amqps"); err != nil {
		return err
	}
	u, _ := url.Parse(s)
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errors.New("its parameters cannot be read")
	}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if name != "heartbeat" {
			return fmt.Errorf("the parameter %.40q has no effect", name)
		}
		seconds, err := strconv.ParseUint(parameters.Get(name), 10, 16)
		if err != nil || seconds == 0 || len(parameters[name]) > 1 {
			return errors.New("heartbeat is a number of seconds, from 1 to 65535")
		}
	}
	return nil
}

// checkURL returns what is wrong with a URL, without quoting it: there may be a
// password in it.
func checkURL(s string, schemes ...string) error {
	u, err := url.Parse(s)
	switch {
	case hasSpace(s):
		return errSpace
	case err != nil:
		return errors.New("it is not a URL")
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("it does not begin with %s://", strings.Join(schemes, ":// or "))
	case u.Hostname() == "":
		return errors.New("there is no // and host in it")
	case u.Fragment != "":
		return errors.New("what follows # has no effect; a # in a password is written %23")
	case u.Port() != "" || strings.HasSuffix(u.Host, ":"):
		return checkPort(u.Port())
	}
	return nil
}

// checkHostPort returns what is wrong with the address of a server, or with one to
// listen at, which needs no host and can have port 0, any free one.
func checkHostPort(s string, listen bool) error {
	host, port, err := net.SplitHostPort(s)
	switch {
	case hasSpace(s):
		return errSpace
	case err != nil || strings.ContainsAny(s, "/@"):
		return errNotAllowed
	case host == "" && !listen:
		return errors.New("there is no host in it")
	case port == "0" && listen:
		return nil
	}
	return checkPort(port)
}

// checkPort returns what is wrong with a port, which may be the name of a service.
func checkPort(port string) error {
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 || port == "" {
		return errPort
	}
	return nil
}

var (
	errSpace = errors.New("there is white space in it")
	errPort  = errors.New("the port is not one from 1 to 65535")
)

func hasSpace(s string) bool { return strings.ContainsFunc(s, unicode.IsSpace) }
