package onced

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	// How long a server is asked whether it speaks TLS.
	probeTime = 500 * time.Millisecond
	// What onced says to callers without TLS where it speaks TLS only, within so many bytes.
	tlsOnly         = "speaks TLS only"
	tlsOnlyMaxBytes = 256
)

// setUpHint is what to do about a server whose call ended so, if that is for somebody to set right; else it is empty. reached
// is whether any server has ever answered: then none is asked for TLS, so that an outage is not made longer by it. Holders
// have been answered.
func (s *server) setUpHint(ctx context.Context, refusal *Refusal, reached bool) string {
	if !s.tls {
		// What gRPC tells of a server that speaks TLS differs with what it heard, down to nothing.
		unheard := refusal.Code == codes.Unavailable && !strings.Contains(refusal.Message, notDialled)
		if s.saidTLSOnly.Load() || (!reached && unheard && speaksTLS(ctx, s.address)) {
			return "it speaks TLS: write https:// in front of its address"
		}
		return ""
	}
	for _, known := range setUpHints {
		if strings.Contains(refusal.Message, known.text) {
			return known.hint
		}
	}
	return ""
}

// speaksTLS asks a server for a handshake, which shows nothing and is not gone on with.
func speaksTLS(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	// Who it is does not matter: nothing is sent.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = connection.Close() // It was for nothing but this.
		return true
	}
	var alert tls.AlertError
	return errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls:")
}

// dial connects without TLS, and hears whether the server says that it speaks nothing else: gRPC keeps that to itself.
func (s *server) dial(ctx context.Context, address string) (net.Conn, error) {
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &overheard{Conn: connection, server: s}, nil
}

// An overheard connection is read by one goroutine.
type overheard struct {
	net.Conn
	server *server
	// What the server said first.
	first []byte
}

// Read listens at the beginning.
func (o *overheard) Read(data []byte) (int, error) {
	n, err := o.Conn.Read(data)
	if most := tlsOnlyMaxBytes - len(o.first); most > 0 {
		o.first = append(o.first, data[:min(n, most)]...)
		if bytes.Contains(o.first, []byte(tlsOnly)) {
			o.server.saidTLSOnly.Store(true)
		}
	}
	return n, err
}
