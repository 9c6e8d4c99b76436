package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/streadway/amqp"
)

// The webhook gets the trace context of the message and WEBHOOK_AUTHORIZATION, which is shown
// nowhere, through the proxy of the environment. etcd and the broker are reached without it.
func TestWebhookHeaders(t *testing.T) {
	e := newEnv(t)
	requests := make(chan *http.Request, 10)
	proxy := newReceiver(t, nil)
	proxy.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests <- r })
	s := e.start("orders", "ENABLE_ETCD=true", "WEBHOOK_URL=http://webhook.invalid/hook", "WEBHOOK_AUTHORIZATION=Bearer s3cret",
		"HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "HEALTH_ADDR=127.0.0.1:0", "LOG_LEVEL=debug")
	s.waitLog("msg=consuming")
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	traced := plumber(orders("h", 1)[0])
	traced.Headers = amqp.Table{"traceparent": parent, "n": int32(1)}
	e.publish(traced)
	r := <-requests
	if r.RequestURI != "http://webhook.invalid/hook" || r.Header.Get("Traceparent") != parent || r.Header.Get("Authorization") != "Bearer s3cret" || r.Header.Get("N") != "" {
		t.Errorf("the proxy got %s with %v", r.RequestURI, r.Header)
	}
	s.waitLog("msg=processed")
	e.publishBodies(orders("without", 1)...)
	if r := <-requests; r.Header.Values("Traceparent") != nil {
		t.Errorf("a message without headers was posted with %v", r.Header)
	}
	s.waitLogs(2, "msg=processed")
	var stats map[string]any
	get(t, s.healthAt()+"/stats", &stats)
	s.stop()
	if strings.Contains(s.log.String()+fmt.Sprint(stats), "s3cret") {
		t.Errorf("the authorization is shown: %v", stats)
	}
}
