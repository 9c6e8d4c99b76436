// Package harness runs the service from outside: the demo and the end-to-end
// tests share it, and the service itself does not import it.
//
//	servers, err := harness.Prepare(ctx, dir, report, []string{"svc"})
//	addresses := harness.Addresses{AMQP: servers.Rabbit.URL(), Etcd: servers.Etcd.Endpoint(), Statsd: statsd.Addr()}
//	receiver := harness.NewReceiver(nil)
//	cmd := exec.Command(filepath.Join(dir, "svc"))
//	cmd.Env = addresses.Env("SERVICE_NAME=orders", "WEBHOOK_URL="+receiver.URL)
//	orders, err := harness.Start("orders", cmd)
//	_, err = orders.Log.Wait(ctx, 1, "msg=consuming")
//	publisher := harness.Publisher{URL: addresses.AMQP}
//	err = publisher.Publish(ctx, harness.NewOrders("1")...)
//	err = receiver.Wait(ctx, func(posts []harness.Post) bool { return len(posts) == 1 })
//	err = orders.Stop(ctx)
//
// The servers come from package stack.
package harness
