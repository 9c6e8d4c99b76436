// Ids tells what etcd knows of ids, and has ids processed again, while services run:
//
//	go run ./svc/ids -role orders 7 8
//	go run ./svc/ids -role orders -forget 7
//
// It prints a line for each id, in the order of the arguments. The first two words are the id and
// what is known of it:
//
//	done       it was processed, and is remembered
//	claimed    a process works on it, or is about to
//	unknown    neither
//	forgotten  it was done until now, and is processed again when it is published or redelivered
//
// What follows is for people. With -forget nothing is changed for an id that is claimed or unknown.
// All replicas of the role must be of a version that knows of forgotten ids.
//
// The ETCD_ variables say where etcd is, as for the service, and AMQP_URL the default of ETCD_PREFIX. The exit status is 1 if etcd does not
// answer, and 2 for bad arguments or variables; go run says 1 for both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/streamdal/gophercon2021/svc/config"
	"github.com/streamdal/gophercon2021/svc/etcd"
	"github.com/streamdal/gophercon2021/svc/event"
	"github.com/streamdal/gophercon2021/svc/ids/lookup"
	"google.golang.org/grpc/grpclog"
)

// timeout is how long etcd may take to answer.
const timeout = 10 * time.Second

func main() {
	// gRPC's log is for its developers. Its errors are returned.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Environ(), timeout, os.Stdout, os.Stderr))
}

// run returns the exit status.
func run(ctx context.Context, args, environ []string, timeout time.Duration, out, errOut io.Writer) int {
	flags := flag.NewFlagSet("ids", flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.Usage = func() {
		fmt.Fprintln(errOut, "usage: ids -role <role> [-forget] <id> ...")
		flags.PrintDefaults()
	}
	role := flags.String("role", "", "the role whose ids they are, such as orders")
	forget := flags.Bool("forget", false, "forget those that are done, so that they are processed again")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	ids := flags.Args()
	if *role == "" || strings.Contains(*role, "/") || len(ids) == 0 {
		flags.Usage()
		return 2
	}
	for _, id := range ids {
		if id == "" || len(id) > event.MaxID || !utf8.ValidString(id) {
			fmt.Fprintf(errOut, "%q is no id: allowed are 1 to %d bytes of UTF-8\n", id, event.MaxID)
			return 2
		}
	}
	cfg, err := config.Read(append(environ, "SERVICE_NAME="+*role), []string{*role})
	if err != nil {
		fmt.Fprintln(errOut, err)
		return 2
	}
	answers, err := ask(ctx, cfg, *role, timeout, *forget, ids)
	if err != nil {
		fmt.Fprintf(errOut, "%v\n%s\n", err, hint(err))
		return 1
	}
	unknown := true
	for _, a := range answers {
		fmt.Fprintln(out, line(a))
		unknown = unknown && a.State == lookup.Unknown
	}
	if unknown { // so that a mistake is not taken for an answer
		fmt.Fprintf(errOut, "nothing is known of them under %s%s/: they were never processed with etcd, were forgotten or have expired; "+
			"or -role or ETCD_PREFIX (by default made of AMQP_URL's virtual host) is wrong\n", cfg.EtcdPrefix, *role)
	}
	return 0
}

// ask connects to etcd, and looks the ids up or forgets them.
func ask(ctx context.Context, cfg config.Config, role string, timeout time.Duration, forget bool, ids []string) ([]lookup.Answer, error) {
	dialCtx, cancel := context.WithTimeoutCause(ctx, timeout, lookup.ErrNoAnswer)
	defer cancel()
	client, err := etcd.Dial(dialCtx, etcd.Server{
		Endpoints: cfg.EtcdEndpoints, TLS: cfg.EtcdTLS, Username: cfg.EtcdUser, Password: cfg.EtcdPassword,
	}, slog.New(slog.DiscardHandler)) // errors are returned
	if err != nil {
		return nil, err
	}
	defer client.Close()
	r := lookup.Role{Client: client, Prefix: cfg.EtcdPrefix + role + "/", Timeout: timeout}
	if forget {
		return r.Forget(ctx, ids...)
	}
	return r.Lookup(ctx, ids...)
}

// hint says what to check after an error.
func hint(err error) string {
	if hint := etcd.Hint(err); hint != "" {
		return hint
	}
	return "check that etcd is up, and ETCD_ENDPOINTS"
}

// line describes an answer.
func line(a lookup.Answer) string {
	id := a.ID
	if strings.ContainsFunc(id, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		id = strconv.Quote(id)
	}
	by := "session " + a.Session
	if a.Process != "" {
		by += " (host and pid: " + a.Process + ")"
	} else {
		by += " (which has ended)"
	}
	switch text := id + " " + string(a.State); {
	case a.State == lookup.Done && a.Left == 0:
		return text + "  by " + by + ", remembered for ever"
	case a.State == lookup.Done:
		return text + "  by " + by + ", remembered for " + a.Left.String() + " more"
	case a.State == lookup.Claimed:
		return text + "  by " + by
	case a.State == lookup.Forgotten:
		return text + "  it was done by " + by
	default:
		return text
	}
}
