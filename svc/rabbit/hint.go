package rabbit

import (
	"errors"
	"regexp"
	"strings"

	"github.com/streadway/amqp"
)

// denied reports whether the broker has answered that the user may not do what
// we ask: a wrong password, a virtual host that does not exist, a missing right.
// The same codes also mean a virtual host that is down, a connection limit, or
// another consumer's exclusive use of the queue; only the text tells.
func denied(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Server && (e.Code == amqp.AccessRefused || e.Code == amqp.NotAllowed) && denial.MatchString(e.Reason)
}

var denial = regexp.MustCompile(`Login was refused|refused for user '.*'$|vhost .* not found$`)

// unreadable reports whether the library has met a message that it cannot read.
// It ends the connection before anyone sees the delivery.
func unreadable(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.FrameError && !e.Server && e.Reason == amqp.ErrSyntax.Error()
}

// hasCode reports whether err is an error of AMQP with this reply code.
func hasCode(err error, code int) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == code
}

// errUnreadableHead means that the message at the head blocks the queue.
var errUnreadableHead = errors.New("the message at the head of the queue cannot be read by this client, probably for a header of an unusual type")

var errOtherType = errors.New("has another type than QUEUE_TYPE")

const checkAccess = "check the user, the password and the virtual host in AMQP_URL, and the user's permissions (rabbitmqctl list_permissions)"

// Hint says what to do about an error that does not pass by itself; it is empty
// for others.
func Hint(err error) string {
	if err == nil {
		return ""
	}
	if denied(err) {
		return checkAccess
	}
	for _, h := range hints {
		if strings.Contains(err.Error(), h.text) {
			return h.hint
		}
	}
	return ""
}

// hints are what to do about errors that contain a text.
var hints = []struct{ text, hint string }{
	{errOtherType.Error(), "set QUEUE_TYPE to the type of the queue, or leave it out; to change the type, see Changing QUEUE_TYPE in svc/README.md"},
	{errUnreadableHead.Error(), "remove it (management UI, Get messages) to let the others through"},
	{errNoQueue.Error(), "make the queue, or check the user's permissions (rabbitmqctl list_permissions)"},
	{errNacked.Error(), "make room in the queue, or raise its max-length"},
	{"tls: ", checkTLS},
	{"x509: ", checkTLS},
	{amqp.ErrFrame.Reason, "check the port in AMQP_URL, which must begin with amqps:// if that is the one for TLS"},
	{`' is down"`, "see the broker's log for the cause, then start the virtual host again (rabbitmqctl restart_vhost)"},
	{"connection limit", "close other connections, or raise the limit (rabbitmqctl set_vhost_limits, set_user_limits)"},
	{"queue limit", "delete queues that are not used, or raise the limit (rabbitmqctl set_vhost_limits)"},
	{"in exclusive use", "stop the other consumer of the queue (rabbitmqctl list_consumers)"},
	{"message size", "raise max_message_size at the broker"},
	{"delivery acknowledgement", "keep MAX_ATTEMPTS x HANDLER_TIMEOUT, which one event may take, below consumer_timeout at the broker, or raise that"},
	{errSlowLogin.Error(), "see the broker's log: its authentication backend may be slow or unreachable"},
	{"dial tcp", checkAddress},
	{errNoAnswer.Error(), checkAddress},
	{errNoReason.Error(), "see the log of the broker, which may be down behind a proxy"},
}

const checkAddress = "check that RabbitMQ is up, and its host and port in AMQP_URL"

const checkTLS = "check AMQP_CACERT, AMQP_CERT and AMQP_KEY, and the broker's certificate and its port in AMQP_URL"
