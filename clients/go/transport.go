package onced

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

const (
	defaultServer  = "127.0.0.1:7411"
	defaultTimeout = 30 * time.Second
	// How long one attempt may take, beyond the wait it asks for, before the next server is tried.
	attemptTime = 10 * time.Second
	// How long a connection may take to come up.
	connectTime = 3 * time.Second
	// How often a busy connection is asked whether it lives, and how long the answer may take.
	keepaliveTime, keepaliveTimeout = 10 * time.Second, 5 * time.Second
	// How addresses are written.
	addressForms = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS"
)

// A lane is the connection that a call takes. Calls of holders have their own, so that no crowd of waiting calls can hold
// up the holder they wait for.
type lane int

const (
	// Begin.
	waiting lane = iota
	// Complete, Renew, Release.
	holding
	lanes
)

type server struct {
	// As the caller wrote it.
	name  string
	index int
	// HOST:PORT.
	address string
	tls     bool
	// Whether it was called without TLS, and said that it speaks nothing else. Not since it answered a call.
	saidTLSOnly atomic.Bool
	// Connected at first use: a client can be made before there is a server.
	connections [lanes]*grpc.ClientConn
}

// A transport sends calls: it alone knows which server, which connection, and how often.
type transport struct {
	servers []*server
	// The server that calls go to: the last one that answered.
	current atomic.Int64
	// Whether any server has ever answered.
	reached atomic.Bool
	bearer  *bearer
	clock   clock
	log     *slog.Logger
}

// splitServers reads the addresses of servers, with commas between.
func splitServers(servers string) []string {
	if servers == "" {
		servers = os.Getenv("ONCED_SERVER")
	}
	var names []string
	for name := range strings.SplitSeq(servers, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return []string{defaultServer}
	}
	return names
}

func newTransport(names []string, access *access, clock clock, log *slog.Logger) (*transport, error) {
	t := &transport{clock: clock, log: log}
	speaksTLS := false
	for index, name := range names {
		server := &server{name: name, index: index}
		if err := server.open(access); err != nil {
			t.close()
			return nil, err
		}
		t.servers = append(t.servers, server)
		speaksTLS = speaksTLS || server.tls
	}
	if access.isForTLS() && !speaksTLS {
		t.close()
		return nil, setUpErrorf("certificates are for TLS, and no server is called by it: write https://HOST:PORT")
	}
	var err error
	if t.bearer, err = access.bearer(clock(), log); err != nil {
		t.close()
		return nil, err
	}
	// Each client starts elsewhere, so that a fleet of them spreads over the servers.
	t.current.Store(rand.Int64N(int64(len(names))))
	return t, nil
}

// open checks the address of the server, and makes its connections, which connect when they are first used.
func (s *server) open(access *access) error {
	address, hasScheme := strings.CutPrefix(s.name, "http://")
	if !hasScheme {
		address, s.tls = strings.CutPrefix(s.name, "https://")
	}
	s.address = strings.TrimSuffix(address, "/")
	host, ok := splitAddress(s.address)
	if !ok {
		return setUpErrorf("%q is no address of a server: %s (onced listens on 7411 by default)", s.name, addressForms)
	}
	shown := insecure.NewCredentials()
	if s.tls {
		config, err := access.tlsConfig()
		if err != nil {
			return err
		}
		shown = credentials.NewTLS(config)
	} else if access.hasToken() && !access.tokenInPlaintext && !isLoopback(host) {
		return setUpErrorf("a token would go to %s for all to read: write https://, or say WithTokenInPlaintext", s.name)
	}
	for lane := range s.connections {
		connection, err := grpc.NewClient("passthrough:///"+s.address, s.dialOptions(shown)...)
		if err != nil {
			return setUpErrorf("%q is no address of a server: %v", s.name, err)
		}
		s.connections[lane] = connection
	}
	return nil
}

// dialOptions leave all retries and all choice of servers to the transport.
func (s *server) dialOptions(shown credentials.TransportCredentials) []grpc.DialOption {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(shown),
		grpc.WithUserAgent("onced-go/" + Version),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestPause / 2},
			MinConnectTimeout: connectTime,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}
	if !s.tls {
		options = append(options, grpc.WithContextDialer(s.dial))
	}
	return options
}

// close ends all connections, and the calls on them.
func (t *transport) close() {
	for _, server := range t.servers {
		for _, connection := range server.connections {
			_ = connection.Close() // It can only have been closed before.
		}
	}
}

func (t *transport) names() []string {
	names := make([]string, len(t.servers))
	for i, server := range t.servers {
		names[i] = server.name
	}
	return names
}

// moveOnFrom makes the next server the one that calls go to. If another call has moved on already, its choice stands.
func (t *transport) moveOnFrom(server *server) {
	t.current.CompareAndSwap(int64(server.index), int64((server.index+1)%len(t.servers)))
}

// sign adds who calls. It replaces what else the context has for outgoing calls: that is meant for other services.
func (t *transport) sign(ctx context.Context) (signed context.Context, sent string) {
	if t.bearer == nil {
		return metadata.NewOutgoingContext(ctx, nil), ""
	}
	sent = t.bearer.current(t.clock())
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", sent)), sent
}

// A method of the service, such as oncedv1.IdempotencyServiceClient.Begin.
type method[Q, A any] func(oncedv1.IdempotencyServiceClient, context.Context, Q, ...grpc.CallOption) (A, error)

// An answer, and when the attempt that got it was sent: a holder counts its lock from there.
type answer[A any] struct {
	message A
	sent    moment
	// Whether an attempt may have been carried out although it was not answered, also where the call failed.
	unsettled bool
}

// call sends a call until it is answered, refused, out of time, or ctx ends.
//
// Its errors: *Refusal, *UnavailableError, *SetUpError, or why ctx ended.
func call[Q, A any](ctx context.Context, t *transport, lane lane, patience patience, request Q, send method[Q, A]) (answer[A], error) {
	try := tries{deadline: t.clock() + patience.total, total: patience.total}
	for {
		server := t.servers[t.current.Load()]
		sent := t.clock()
		most := max(min(patience.attempt, try.deadline-sent), time.Millisecond)
		attempt, cancel := context.WithTimeoutCause(ctx, most, errSilent)
		signed, token := t.sign(attempt)
		var trailer metadata.MD
		message, err := send(oncedv1.NewIdempotencyServiceClient(server.connections[lane]), signed, request, grpc.Trailer(&trailer))
		silent := errors.Is(context.Cause(attempt), errSilent)
		cancel()
		if err == nil {
			t.reached.Store(true)
			server.saidTLSOnly.Store(false)
			return answer[A]{message, sent, try.unsettled}, nil
		}
		if ctx.Err() != nil {
			return answer[A]{unsettled: true}, givenUp(ctx)
		}
		failed := status.Convert(err)
		if failed.Code() == codes.Unauthenticated && token != "" && t.bearer.renewed(token, t.clock()) {
			t.heard(&try, refusalOf(failed))
			continue // A file is changed a few times at most, so nobody goes round here for long.
		}
		if silent && refusalOf(failed).Reason == "" {
			failed = status.Newf(codes.DeadlineExceeded, "%s did not answer within %v", server.name, most.Round(time.Millisecond))
		}
		if err := t.next(ctx, &try, server, failed, trailer); err != nil {
			return answer[A]{unsettled: try.unsettled}, err
		}
	}
}

// errSilent is why an attempt ended that its server did not answer in time.
var errSilent = errors.New("no answer")
