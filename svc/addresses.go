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

// each returns the first error of check for one of the values, or nil. A list
// without values is an error, too.
func each(values []string, check func(string) error) error {
	if len(values) == 0 {
		return errors.New("it is empty")
	}
	for _, v := range values {
		if err := check(v); err != nil {
			return err
		}
	}
	return nil
}

// checkUnlessEmpty checks a value that need not be set.
func checkUnlessEmpty(value string, check func(string) error) error {
	if value == "" {
		return nil
	}
	return check(value)
}

// checkAMQP returns what is wrong with a broker's URL. Parameters that other
// clients know, such as connection_timeout, would silently have no effect.
func checkAMQP(s string) error {
	u, err := checkURL(s, "amqp", "amqps")
	if err != nil {
		return err
	}
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

// checkAMQPS is for brokers that TLS is wanted for: another URL would silently do
// without.
func checkAMQPS(s string) error {
	_, err := checkURL(s, "amqps")
	return err
}

// checkURL returns the URL, or what is wrong with it without quoting it: there may
// be a password in it.
func checkURL(s string, schemes ...string) (*url.URL, error) {
	if hasSpace(s) {
		return nil, errSpace
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("it is not a URL")
	case !slices.Contains(schemes, u.Scheme):
		return nil, fmt.Errorf("it does not begin with %s://", strings.Join(schemes, ":// or "))
	case u.Hostname() == "":
		return nil, errors.New("there is no // and host in it")
	case u.Fragment != "":
		return nil, errors.New("what follows # has no effect; a # in a password is written %23")
	}
	if u.Port() != "" || strings.HasSuffix(u.Host, ":") {
		return u, checkPort(u.Port())
	}
	return u, nil
}

// checkHTTP returns what is wrong with the URL of a receiver.
func checkHTTP(s string) error {
	_, err := checkURL(s, "http", "https")
	return err
}

// checkHostPort returns what is wrong with the address of a server.
func checkHostPort(s string) error {
	if strings.HasPrefix(s, ":") {
		return errors.New("there is no host in it")
	}
	if strings.HasSuffix(s, ":0") {
		return errPort
	}
	return checkListen(s)
}

// checkListen returns what is wrong with an address to listen at. Port 0 is any
// free one.
func checkListen(s string) error {
	_, port, err := net.SplitHostPort(s)
	switch {
	case hasSpace(s):
		return errSpace
	case err != nil || strings.ContainsAny(s, "/@"):
		return errNotAllowed
	case port == "0":
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
