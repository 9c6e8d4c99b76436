package config

import "testing"

// Virtual hosts have prefixes of their own, unless ETCD_PREFIX says otherwise.
func TestPrefix(t *testing.T) {
	for _, tt := range []struct{ broker, prefix, want string }{
		{"", "", "/service/"},
		{"amqp://h", "", "/service/"},
		{"amqp://h/", "", "/service/"},
		{"amqp://h/%2f,amqp://h2/", "", "/service/"},
		{"amqp://h/prod?heartbeat=5", "", "/prod/service/"},
		{"amqps://u:p@a:1/prod,amqp://b/prod", "", "/prod/service/"},
		{"amqp://h/a%2fb%20c", "", "/a%2Fb%20c/service/"},
		{"amqp://h/%252f", "", "/%252f/service/"},
		{"amqp://h/prod", "/service/", "/service/"},
		{"", "staging/", "staging/"},
	} {
		got, err := read("AMQP_URL="+tt.broker, "ETCD_PREFIX="+tt.prefix)
		if err != nil || got.EtcdPrefix != tt.want {
			t.Errorf("AMQP_URL=%s ETCD_PREFIX=%s: %q, %v; want %q", tt.broker, tt.prefix, got.EtcdPrefix, err, tt.want)
		}
	}
}
