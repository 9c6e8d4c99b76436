package main

import "context"

// hold keeps both services running until ctrl-c. The counters continue from the last
// scene.
func (s *env) hold(ctx context.Context) error {
	p := s.newScript(ctx)
	defer p.end()
	p.startBoth("ENABLE_ETCD=true")
	if err := context.Cause(p.sceneCtx); err != nil {
		return err
	}
	s.status.update(func(v *view) {
		v.Number, v.Title, v.Step = 0, "Over to you", "Ctrl-c in the terminal ends it."
		v.Text = "Everything keeps running, with ENABLE_ETCD=true: publish by hand, and watch."
	})
	s.screen.title("Everything keeps running until ctrl-c. Publish by hand, and watch:")
	s.screen.write(s.screen.prompts([]string{"plumber write rabbit --address " + s.servers.AMQP +
		" \\\n    --exchange-name events --routing-key=foo \\\n    --input '" + event("by-hand") + "'",
		"AMQP_URL=" + s.servers.AMQP + " go run ./example1",
	})...)
	s.screen.write(
		"  page      "+s.pageURL,
		"  RabbitMQ  "+s.servers.AMQP,
		"  etcd      "+s.servers.Etcd,
		"  statsd    "+s.servers.Statsd,
	)
	<-ctx.Done()
	return nil
}
