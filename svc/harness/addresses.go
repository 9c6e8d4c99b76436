package harness

import "os"

// Addresses are those of the servers that a service uses.
type Addresses struct {
	AMQP   string // AMQP_URL
	Etcd   string // ETCD_ENDPOINTS
	Statsd string // STATSD_ADDR
}

// Env returns the environment of a service that uses these servers, with further
// variables, of which later ones win.
func (a Addresses) Env(vars ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"AMQP_URL=" + a.AMQP, "ETCD_ENDPOINTS=" + a.Etcd, "STATSD_ADDR=" + a.Statsd,
	}, vars...)
}
