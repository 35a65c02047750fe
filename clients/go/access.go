package onced

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// How old a token that was read from a file may be when it is sent.
const tokenAge = 5 * time.Second

// access is what a client shows of itself, and whom it trusts.
type access struct {
	// The file of the CA that signed the servers' certificates; those that the system trusts without one. What is given
	// and empty is a mistake, here and below, and not the same as nothing.
	caFile *string
	// The files of a certificate and its key.
	certFile, keyFile *string
	// A token, or the file of one.
	token, tokenFile *string
	// Whether a token may go over the network for all to read.
	tokenInPlaintext bool
}

func (a *access) isForTLS() bool {
	return a.caFile != nil || a.certFile != nil
}

func (a *access) hasToken() bool {
	return a.token != nil || a.tokenFile != nil
}

// tlsConfig is what to connect by TLS with. The files are read now, and not again.
func (a *access) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.caFile != nil {
		pem, err := os.ReadFile(*a.caFile)
		if err != nil {
			return nil, setUpErrorf("the CA cannot be read: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, setUpErrorf("%s holds no certificate in PEM", *a.caFile)
		}
	}
	if a.certFile != nil {
		pair, err := tls.LoadX509KeyPair(*a.certFile, *a.keyFile)
		if err != nil {
			return nil, setUpErrorf("the certificate in %s and its key in %s cannot be used: %v", *a.certFile, *a.keyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// A bearer is the token that says who calls, read again from its file. A nil one is none.
type bearer struct {
	// Empty for a token that was given as text.
	file string
	log  *slog.Logger

	mu     sync.Mutex
	header string
	read   moment
}

func (a *access) bearer(now moment, log *slog.Logger) (*bearer, error) {
	if !a.hasToken() {
		return nil, nil
	}
	if a.token != nil && a.tokenFile != nil {
		return nil, setUpErrorf("a token and a file of one are given: which is it?")
	}
	b := &bearer{log: log, read: now}
	var err error
	if a.tokenFile == nil {
		b.header, err = bearerHeader(*a.token, "the token")
	} else {
		b.file = *a.tokenFile
		b.header, err = readToken(b.file)
	}
	return b, err
}

// current is what to send. The file is small and local: reading it holds nobody up.
func (b *bearer) current(now moment) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now-b.read >= tokenAge {
		b.readAgain(now)
	}
	return b.header
}

// renewed is whether there is another token to try, after sent was refused.
func (b *bearer) renewed(sent string, now moment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readAgain(now)
	return b.header != sent
}

func (b *bearer) readAgain(now moment) {
	if b.file == "" {
		return
	}
	b.read = now
	header, err := readToken(b.file)
	if err != nil {
		b.log.Warn("onced: the token stays as it was", "error", err)
		return
	}
	b.header = header
}

func readToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", setUpErrorf("the token cannot be read: %v", err)
	}
	return bearerHeader(strings.TrimSpace(string(text)), file)
}

// bearerHeader never tells the token, whatever is wrong with it.
func bearerHeader(token, what string) (string, error) {
	if token == "" {
		return "", setUpErrorf("%s is empty, and is to be a token", what)
	}
	for _, char := range []byte(token) {
		if char <= ' ' || char > '~' {
			return "", setUpErrorf("%s is to be a token: printable text on one line, without spaces", what)
		}
	}
	return "Bearer " + token, nil
}

// isLoopback is whether a host is this machine, where nobody listens in between.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// setUpHints are what to do about a connection by TLS that failed with such a text, where that is known and no later attempt
// would fare better. The texts are those of crypto/tls, crypto/x509 and gRPC; access_test.go meets most of them.
var setUpHints = []struct{ text, hint string }{
	{"certificate signed by unknown authority", "its certificate is signed by nobody who is trusted here: name its CA (WithCAFile)"},
	{"certificate is valid for", "its certificate is for other names: call it by one of them"},
	{"doesn't contain any IP SANs", "its certificate is for other names: call it by one of them"},
	{"certificate is not valid for any names", "its certificate is for other names: call it by one of them"},
	{"relies on legacy Common Name field", "its certificate names no host: give the server one with subject alternative names"},
	{"certificate has expired or is not yet valid", "renew the server's certificate, or set the clock of this machine right"},
	{"remote error: tls: certificate required", "it wants to see a certificate: name one (WithCertificate)"},
	{"remote error: tls: unknown certificate authority", clientCertificateRefused},
	{"remote error: tls: error decrypting message", clientCertificateRefused},
	{"remote error: tls: bad certificate", clientCertificateRefused},
	{"remote error: tls: unknown certificate", clientCertificateRefused},
	{"remote error: tls: expired certificate", "the certificate of this client has expired"},
	{"first record does not look like a TLS handshake", "it does not speak TLS there: write http:// in place of https://, or name the port that does"},
	{"missing selected ALPN property", "it does not speak gRPC there: name the port that does"},
}

const clientCertificateRefused = "it does not take the certificate of this client: is that signed by the server's tls.client_ca?"

// splitAddress checks an address as it is dialled.
func splitAddress(address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, " /?#@") {
		return "", false
	}
	number := 0
	for _, digit := range port {
		if digit < '0' || digit > '9' || number > 65535 {
			return "", false
		}
		number = number*10 + int(digit-'0')
	}
	return host, number > 0 && number <= 65535
}
