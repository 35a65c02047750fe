package onced

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

// Whatever hangs fails after so long.
const hangs = 30 * time.Second

// A fake is a server whose every answer a test makes up, and that remembers what it was asked.
type fake struct {
	oncedv1.UnimplementedIdempotencyServiceServer
	address  string
	begin    func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error)
	complete func(context.Context, *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error)
	renew    func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error)
	release  func(context.Context, *oncedv1.ReleaseRequest) (*oncedv1.ReleaseResponse, error)
	session  func(sessionServer) error

	mu   sync.Mutex
	seen map[string][]any
}

func startFake(t *testing.T, options ...grpc.ServerOption) *fake {
	t.Helper()
	f := &fake{seen: map[string][]any{}}
	serve(t, f, "127.0.0.1:0", options...)
	return f
}

func serve(t *testing.T, f *fake, address string, options ...grpc.ServerOption) *grpc.Server {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	server := grpc.NewServer(options...)
	oncedv1.RegisterIdempotencyServiceServer(server, f)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return server
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fake) note(method string, request any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[method] = append(f.seen[method], request)
}

// asked is what it was asked so far.
func (f *fake) asked(method string) []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]any(nil), f.seen[method]...)
}

// until waits for so many calls of a method.
func (f *fake) until(t *testing.T, method string, calls int) []any {
	t.Helper()
	for end := time.Now().Add(hangs); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if asked := f.asked(method); len(asked) >= calls {
			return asked
		}
	}
	t.Fatalf("%d calls of %s came, and not %d", len(f.asked(method)), method, calls)
	return nil
}

func (f *fake) Begin(ctx context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
	f.note("Begin", request)
	if f.begin == nil {
		return granted(7, 30*time.Second), nil
	}
	return f.begin(ctx, request)
}

func (f *fake) Complete(ctx context.Context, request *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error) {
	f.note("Complete", request)
	if f.complete == nil {
		return &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{FencingToken: request.GetFencingToken(), Attempt: 1}}, nil
	}
	return f.complete(ctx, request)
}

func (f *fake) Renew(ctx context.Context, request *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
	f.note("Renew", request)
	if f.renew == nil {
		return &oncedv1.RenewResponse{LockExpiresIn: durationpb.New(30 * time.Second)}, nil
	}
	return f.renew(ctx, request)
}

func (f *fake) Release(ctx context.Context, request *oncedv1.ReleaseRequest) (*oncedv1.ReleaseResponse, error) {
	f.note("Release", request)
	if f.release == nil {
		return &oncedv1.ReleaseResponse{}, nil
	}
	return f.release(ctx, request)
}

type sessionServer = grpc.BidiStreamingServer[oncedv1.SessionRequest, oncedv1.SessionResponse]

func (f *fake) Session(stream sessionServer) error {
	if f.session == nil {
		return f.UnimplementedIdempotencyServiceServer.Session(stream)
	}
	return f.session(stream)
}

// carries is a session that opens, notes its calls, and sends what answer says, until it returns an error or no more calls
// come. That is noted as "the end".
func (f *fake) carries(answer func(*oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error)) func(sessionServer) error {
	return func(stream sessionServer) error {
		if err := stream.SendHeader(nil); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if err != nil {
				f.note("the end", err)
				return nil
			}
			f.note("Session", request)
			answers, err := answer(request)
			for _, answer := range answers {
				_ = stream.Send(answer) // Whether somebody hears it is what tests look at.
			}
			if err != nil {
				return err
			}
		}
	}
}

func granted(token uint64, ttl time.Duration) *oncedv1.BeginResponse {
	return &oncedv1.BeginResponse{Result: &oncedv1.BeginResponse_Claim{Claim: &oncedv1.Claim{
		FencingToken: token, Attempt: 1, LockTtl: durationpb.New(ttl), MaxOutcomeBytes: 1 << 20,
	}}}
}

func held(owner string) *oncedv1.BeginResponse {
	return &oncedv1.BeginResponse{Result: &oncedv1.BeginResponse_InProgress{InProgress: &oncedv1.InProgress{Owner: owner, Attempt: 1}}}
}

// refusal is an error as a server of onced sends it.
func refusal(code codes.Code, reason string) error {
	st, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Domain: errorDomain, Reason: reason})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// pushedBack is the same, and asks for so many milliseconds.
func pushedBack(ctx context.Context, millis string) error {
	_ = grpc.SetTrailer(ctx, metadata.Pairs(pushbackHeader, millis))
	return refusal(codes.Unavailable, "OVERLOADED")
}

func connect(t *testing.T, servers string, options ...Option) *Client {
	t.Helper()
	client, err := New(servers, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), hangs)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return client
}

// withClock is the clock that locks are counted on.
func withClock(clock clock) Option {
	return func(s *settings) { s.clock = clock }
}

func returns[T any](value T) func(context.Context, *Claim) (T, error) {
	return func(context.Context, *Claim) (T, error) { return value, nil }
}

func mustNotRun(t *testing.T) func(context.Context, *Claim) (int, error) {
	return func(context.Context, *Claim) (int, error) {
		t.Error("the work ran")
		return 0, nil
	}
}

var errBroke = errors.New("the line broke")
