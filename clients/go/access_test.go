package onced

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"onced.dev/go/onced/internal/testserver"
)

// An authority signs certificates, and keeps them in files.
type authority struct {
	dir, file string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.file = filepath.Join(a.dir, "ca.crt")
	pair := a.sign(t, "ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "a CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// sign makes a certificate, in NAME.crt and NAME.key.
func (a *authority) sign(t *testing.T, name string, cert *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert.SerialNumber = big.NewInt(time.Now().UnixNano())
	if cert.NotAfter.IsZero() {
		cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	write(t, filepath.Join(a.dir, name+".crt"), string(certPEM))
	write(t, filepath.Join(a.dir, name+".key"), string(keyPEM))
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (a *authority) files(name string) (certFile, keyFile string) {
	return filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
}

func forLoopback() *x509.Certificate {
	return &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}
}

func TestWhatIsSetUpWrongIsAnErrorAtOnceThatSaysWhatToDo(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	good := ours.sign(t, "good", forLoopback())
	callers := x509.NewCertPool()
	callers.AddCert(ours.cert)
	caller := ours.sign(t, "caller", &x509.Certificate{DNSNames: []string{"caller"}})
	expired := ours.sign(t, "expired", &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
	})
	_ = caller
	other.sign(t, "stranger", &x509.Certificate{DNSNames: []string{"caller"}})
	byTLS := func(config *tls.Config) grpc.ServerOption { return grpc.Creds(credentials.NewTLS(config)) }
	shows := func(cert tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	asks := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{good}, ClientCAs: callers, ClientAuth: tls.RequireAndVerifyClientCert}
	}
	strangerCert, strangerKey := other.files("stranger")
	expiredCert, expiredKey := ours.files("expired")

	for name, test := range map[string]struct {
		server  []grpc.ServerOption
		scheme  string
		options []Option
		want    string
	}{
		"TLS to a port without":          {nil, "https://", []Option{WithCAFile(ours.file)}, "write http://"},
		"none to a port with TLS":        {[]grpc.ServerOption{byTLS(shows(good))}, "http://", nil, "write https://"},
		"signed by somebody else":        {[]grpc.ServerOption{byTLS(shows(good))}, "https://", []Option{WithCAFile(other.file)}, "WithCAFile"},
		"of another name":                {[]grpc.ServerOption{byTLS(shows(ours.sign(t, "x", &x509.Certificate{DNSNames: []string{"onced"}})))}, "https://", []Option{WithCAFile(ours.file)}, "other names"},
		"of another address":             {[]grpc.ServerOption{byTLS(shows(ours.sign(t, "y", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}})))}, "https://", []Option{WithCAFile(ours.file)}, "other names"},
		"expired":                        {[]grpc.ServerOption{byTLS(shows(expired))}, "https://", []Option{WithCAFile(ours.file)}, "renew"},
		"wants a certificate":            {[]grpc.ServerOption{byTLS(asks())}, "https://", []Option{WithCAFile(ours.file)}, "WithCertificate"},
		"wants one that it has signed":   {[]grpc.ServerOption{byTLS(asks())}, "https://", []Option{WithCAFile(ours.file), WithCertificate(strangerCert, strangerKey)}, "tls.client_ca"},
		"wants one that has not expired": {[]grpc.ServerOption{byTLS(asks())}, "https://", []Option{WithCAFile(ours.file), WithCertificate(expiredCert, expiredKey)}, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t, test.server...)
			client := connect(t, test.scheme+server.address, test.options...)
			_, err := Run(t.Context(), client, "k", mustNotRun(t), FailOpen(hangs))
			var setUp *SetUpError
			if !errors.As(err, &setUp) || !errors.Is(err, ErrNotBegun) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestTheSameHoldsForARealServer(t *testing.T) {
	ours := newAuthority(t)
	ours.sign(t, "server", forLoopback())
	ours.sign(t, "caller", &x509.Certificate{DNSNames: []string{"caller"}})
	cert, key := ours.files("server")
	plain := testserver.Start(t)
	byTLS := testserver.Start(t, "--tls-cert", cert, "--tls-key", key)
	asks := testserver.Start(t, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.file)
	for address, want := range map[string]string{
		"https://" + plain.Address: "write http://",
		"http://" + byTLS.Address:  "write https://",
		"https://" + asks.Address:  "WithCertificate",
	} {
		options := []Option{}
		if strings.HasPrefix(address, "https") {
			options = append(options, WithCAFile(ours.file))
		}
		// However short its time is, it does not fail open.
		_, err := Run(t.Context(), connect(t, address, options...), "k", mustNotRun(t), FailOpen(200*time.Millisecond))
		var setUp *SetUpError
		if !errors.As(err, &setUp) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for address, options := range map[string][]Option{
		"https://" + byTLS.Address: {WithCAFile(ours.file)},
		"https://" + asks.Address:  {WithCAFile(ours.file), WithCertificate(ours.files("caller"))},
	} {
		if _, err := Run(t.Context(), connect(t, address, options...), "k", returns(1)); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestAClientThatWasAnsweredBeforeSitsItOut(t *testing.T) {
	client := connect(t, "https://"+startFake(t).address, WithTimeout(300*time.Millisecond))
	client.transport.reached.Store(true)
	_, err := Run(t.Context(), client, "k", mustNotRun(t), FailOpen(100*time.Millisecond))
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "write http://") {
		t.Error(err)
	}
}

func TestNoServerIsAskedForTLSOnceOneHasAnswered(t *testing.T) {
	ours := newAuthority(t)
	fake := startFake(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{ours.sign(t, "s", forLoopback())}})))
	broken := &Refusal{Code: codes.Unavailable, Message: "the connection broke"}
	for reached, want := range map[bool]bool{false: true, true: false} {
		hint := (&server{address: fake.address}).setUpHint(t.Context(), broken, reached)
		if asked := hint != ""; asked != want {
			t.Errorf("after an answer %v: %q", reached, hint)
		}
	}
}

func TestAddressesAndFilesAreCheckedBeforeAnythingIsSent(t *testing.T) {
	ours := newAuthority(t)
	ours.sign(t, "one", forLoopback())
	ours.sign(t, "two", forLoopback())
	oneCert, _ := ours.files("one")
	_, twoKey := ours.files("two")
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, "\n")
	for _, good := range []string{"127.0.0.1:7411", "http://onced.internal:7411", "[::1]:7411", "https://onced:7411/", " a:1 , b:2 "} {
		client, err := New(good)
		if err != nil {
			t.Errorf("%s: %v", good, err)
			continue
		}
		_ = client.Close(t.Context())
	}
	for name, test := range map[string]struct {
		servers string
		options []Option
		want    string
	}{
		"no port":               {"127.0.0.1", nil, "HOST:PORT"},
		"no host":               {":7411", nil, "HOST:PORT"},
		"a port of words":       {"onced:http", nil, "HOST:PORT"},
		"a port too large":      {"onced:70000", nil, "HOST:PORT"},
		"another scheme":        {"etcd://127.0.0.1:1", nil, "HOST:PORT"},
		"a path":                {"http://onced:7411/v1", nil, "HOST:PORT"},
		"words":                 {"not an address", nil, "HOST:PORT"},
		"one of two":            {"127.0.0.1:1,x", nil, "HOST:PORT"},
		"certificates for none": {"127.0.0.1:1", []Option{WithCAFile(ours.file)}, "https://"},
		"no CA":                 {"https://a:1", []Option{WithCAFile("/no/such/file")}, "/no/such/file"},
		"a CA without":          {"https://a:1", []Option{WithCAFile(empty)}, "no certificate"},
		"the key of another":    {"https://a:1", []Option{WithCertificate(oneCert, twoKey)}, "cannot be used"},
		"no token":              {"127.0.0.1:1", []Option{WithTokenFile("/no/such/file")}, "/no/such/file"},
		"an empty token":        {"127.0.0.1:1", []Option{WithTokenFile(empty)}, "empty"},
		"a token of nothing":    {"127.0.0.1:1", []Option{WithToken("")}, "empty"},
		"a CA of nothing":       {"https://a:1", []Option{WithCAFile("")}, "cannot be read"},
		"no time":               {"127.0.0.1:1", []Option{WithTimeout(0)}, "WithTimeout"},
		"a token of two lines":  {"127.0.0.1:1", []Option{WithToken("a\nb")}, "one line"},
		"two tokens":            {"127.0.0.1:1", []Option{WithToken("a"), WithTokenFile(empty)}, "which"},
		"a token for all":       {"onced:7411", []Option{WithToken("secret")}, "for all to read"},
	} {
		_, err := New(test.servers, test.options...)
		var setUp *SetUpError
		if !errors.As(err, &setUp) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, servers := range []string{"localhost:1", "127.9.9.9:1", "[::1]:1", "https://onced:1"} {
		if client, err := New(servers, WithToken("t")); err != nil {
			t.Errorf("%s: %v", servers, err)
		} else {
			_ = client.Close(t.Context())
		}
	}
	client, err := New("onced:7411", WithToken("t"), WithTokenInPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close(t.Context())
}

func TestATokenIsReadAgainWhenItIsOldOrRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "one\n")
	bearer, err := (&access{tokenFile: &file}).bearer(0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	first := bearer.current(4 * time.Second)
	if first != "Bearer one" || bearer.renewed(first, 4*time.Second) {
		t.Error(first)
	}
	write(t, file, "two")
	if token := bearer.current(8 * time.Second); token != "Bearer one" {
		t.Error(token)
	}
	if token := bearer.current(9 * time.Second); token != "Bearer two" {
		t.Error(token)
	}
	if !bearer.renewed(first, 9*time.Second) {
		t.Error("another call has read it meanwhile")
	}
	write(t, file, "")
	if token := bearer.current(100 * time.Second); token != "Bearer two" {
		t.Error(token)
	}
}
