package harness

import "os"

// Addresses holds the addresses of the servers that a service uses.
type Addresses struct {
	AMQP   string // AMQP_URL
	Etcd   string // ETCD_ENDPOINTS
	Statsd string // STATSD_ADDR
}

// Env returns the environment of a service that uses these servers, followed by vars.
// Later variables override earlier ones.
func (a Addresses) Env(vars ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"AMQP_URL=" + a.AMQP, "ETCD_ENDPOINTS=" + a.Etcd, "STATSD_ADDR=" + a.Statsd,
	}, vars...)
}
