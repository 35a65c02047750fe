package onced

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
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
	"google.golang.org/protobuf/proto"

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
	lines [lanes]*line
}

// A transport sends calls: it alone knows which server, which connection, and how often.
type transport struct {
	servers []*server
	// The server that calls go to: the last one that answered.
	current atomic.Int64
	// Whether any server has ever answered.
	reached atomic.Bool
	bearer  *bearer
	// Whether sessions may carry calls.
	sessions bool
	clock    clock
	log      *slog.Logger
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

func newTransport(names []string, s *settings) (*transport, error) {
	access := &s.access
	t := &transport{sessions: !s.withoutSessions, clock: s.clock, log: s.log}
	speaksTLS := false
	for index, name := range names {
		server := &server{name: name, index: index}
		if err := server.open(t, access); err != nil {
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
	if t.bearer, err = access.bearer(t.clock(), t.log); err != nil {
		t.close()
		return nil, err
	}
	// Each client starts elsewhere, so that a fleet of them spreads over the servers.
	t.current.Store(rand.Int64N(int64(len(names))))
	return t, nil
}

// open checks the address of the server, and makes its connections, which connect when they are first used.
func (s *server) open(t *transport, access *access) error {
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
	for lane := range s.lines {
		connection, err := grpc.NewClient("passthrough:///"+s.address, s.dialOptions(shown)...)
		if err != nil {
			return setUpErrorf("%q is no address of a server: %v", s.name, err)
		}
		s.lines[lane] = &line{transport: t, connection: connection, service: oncedv1.NewIdempotencyServiceClient(connection)}
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

// close ends all connections. No call is under way.
func (t *transport) close() {
	var closing sync.WaitGroup
	for _, server := range t.servers {
		for _, line := range server.lines {
			closing.Add(1)
			go func() { defer closing.Done(); line.close() }()
		}
	}
	closing.Wait()
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
func call[Q proto.Message, A any](ctx context.Context, t *transport, lane lane, patience patience, request Q, send method[Q, A]) (answer[A], error) {
	try := tries{deadline: t.clock() + patience.total, total: patience.total}
	for {
		server := t.servers[t.current.Load()]
		most := max(min(patience.attempt, try.deadline-t.clock()), time.Millisecond)
		made := makeAttempt(ctx, server.lines[lane], most, patience.grace, request, send)
		try.unsettled = try.unsettled || made.unsettled
		if made.refused != nil {
			t.heard(&try, made.refused)
		}
		if made.err == nil {
			t.reached.Store(true)
			server.saidTLSOnly.Store(false)
			return answer[A]{made.message, made.sent, try.unsettled}, nil
		}
		if ctx.Err() != nil {
			return answer[A]{unsettled: true}, givenUp(ctx)
		}
		failed := status.Convert(made.err)
		if failed.Code() == codes.Unauthenticated && made.token != "" && t.bearer.renewed(made.token, t.clock()) {
			t.heard(&try, refusalOf(failed))
			continue // A file is changed a few times at most, so nobody goes round here for long.
		}
		if made.silent && refusalOf(failed).Reason == "" {
			failed = status.Newf(codes.DeadlineExceeded, "%s did not answer within %v", server.name, most.Round(time.Millisecond))
		}
		if err := t.next(ctx, &try, server, failed, made.trailer); err != nil {
			return answer[A]{unsettled: try.unsettled}, err
		}
	}
}

// errSilent is why an attempt ended that its server did not answer in time.
var errSilent = errors.New("no answer")

// An attempt is what one attempt of a call came to.
type attempt[A any] struct {
	message A
	err     error
	// When the call was sent that this came of.
	sent moment
	// The token that was shown, if that could be another one.
	token   string
	trailer metadata.MD
	// Whether its server did not answer in time.
	silent bool
	// Whether it was sent in a session too, which did not answer.
	unsettled bool
	// How a session refused its credentials, after which it went on by itself.
	refused *Refusal
}

// makeAttempt sends a call once: in the session of its connection, or else by itself. What becomes of the session is no answer;
// the call then goes on by itself in the time that is left.
func makeAttempt[Q proto.Message, A any](ctx context.Context, line *line, most, grace time.Duration, request Q, send method[Q, A]) (made attempt[A]) {
	clock := line.transport.clock
	started := clock()
	made.sent = started
	session := line.enter()
	defer line.leave()
	if session != nil {
		answer, err := session.call(ctx, inSession(request, most), most+min(grace, most/4))
		if err == nil {
			made.message, made.err = read[A](answer)
			made.trailer = sentByServer
			return made
		}
		errors.As(err, &made.refused)
		made.unsettled = err != errNotTaken
		if made.silent = err == errSilent; made.silent || ctx.Err() != nil {
			made.err = err
			return made
		}
		made.sent = clock()
	}
	alone, cancel := context.WithTimeoutCause(ctx, most-(made.sent-started), errSilent)
	defer cancel()
	signed, token := line.transport.sign(alone)
	made.token = token
	made.message, made.err = send(line.service, signed, request, grpc.Trailer(&made.trailer))
	made.silent = errors.Is(context.Cause(alone), errSilent)
	return made
}

// sentByServer stands for the trailer of what came in a session, so that it is not taken for a broken connection.
var sentByServer = metadata.Pairs("content-type", "application/grpc")

// read is what an answer in a session would be by itself.
func read[A any](answer *oncedv1.SessionResponse) (A, error) {
	message, ok := contentOf(answer).(A)
	if ok {
		return message, nil
	}
	if failed := answer.GetError(); failed.GetCode() != int32(codes.OK) {
		return message, status.FromProto(failed).Err()
	}
	return message, status.Error(codes.Internal, "the server's answer in a session is none to this call")
}
