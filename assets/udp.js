// statsd's configuration in docker-compose.yaml. Also good for a statsd from npm beside a carbon on this machine:
// node stats.js /path/to/assets/udp.js
{
  graphiteHost: "127.0.0.1", // in the container too: statsd and carbon share it
  graphitePort: 2003,
  servers: [{ server: "./servers/udp", address: "0.0.0.0", port: 8125 }],

  // Every second, so that a graph follows what one does; storage-schemas.conf keeps what this sends.
  flushInterval: 1000,

  // Counters as stats_counts.<name>, with no prefix before the name. This is the default, and spelled out because the
  // paths in the README hang on it.
  graphite: { legacyNamespace: true }
}
