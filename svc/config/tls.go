package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// loadTLS loads the PEM files that a server's three variables name, and returns the rules
// for these variables. It returns no tls.Config if none of them is set.
func loadTLS(server, ca, cert, key string) (*tls.Config, []rule) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var caErr, certErr, keyErr error
	if ca != "" {
		cfg.RootCAs, caErr = loadCA(ca)
	}
	switch {
	case cert == "" && key != "":
		certErr = errors.New(server + "_KEY is set")
	case key == "" && cert != "":
		keyErr = errors.New(server + "_CERT is set")
	case cert != "":
		var pair tls.Certificate
		pair, certErr = tls.LoadX509KeyPair(cert, key)
		cfg.GetClientCertificate = renewable(&pair, cert, key)
	}
	file := func(suffix string, err error) rule {
		return rule{server + suffix, err == nil, fmt.Sprintf("the path of a PEM file (%v)", err)}
	}
	return cfg, []rule{file("_CACERT", caErr), file("_CERT", certErr), file("_KEY", keyErr)}
}

func loadCA(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = errors.New("there is no certificate in it")
	}
	return pool, err
}

// renewable returns a function that reads the certificate again for each
// handshake, because it may have been renewed. While the files cannot be read, or
// only one of the two is new, it returns the last certificate that could be read.
func renewable(first *tls.Certificate, cert, key string) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	var last atomic.Pointer[tls.Certificate]
	last.Store(first)
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if pair, err := tls.LoadX509KeyPair(cert, key); err == nil {
			last.Store(&pair)
		}
		return last.Load(), nil
	}
}
