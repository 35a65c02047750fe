// Package oncedgrpc has interceptors for gRPC servers that carry out a call once for its idempotency-key metadata, however often
// it is repeated, and give every repetition the same answer. What becomes of which answer stands in the contract of the client
// libraries, clients/README.md of the repository.
//
//	grpc.NewServer(
//		grpc.UnaryInterceptor(oncedgrpc.UnaryServerInterceptor(client, oncedgrpc.With(onced.Namespace("shop")))),
//		grpc.StreamInterceptor(oncedgrpc.StreamServerInterceptor()),
//	)
//
// The handler runs to its end although its caller cancels the call or its deadline passes, and its answer is stored. Its context
// ends when the claim is lost; [onced.ClaimFrom] has the claim. A handler says by [onced.Fail] and [onced.Final] what becomes of
// the key of an error, whatever its code.
package oncedgrpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/canonical"
	"onced.dev/go/onced/internal/idempotency"
	oncedv1 "onced.dev/go/onced/v1"
)

const (
	keyHeader      = "idempotency-key"
	replayedHeader = "idempotent-replayed"
	contentType    = "application/grpc"
	errorDomain    = "onced.dev"

	defaultMaxRequestBytes = 1 << 20
	defaultWait            = 10 * time.Second
)

// An Option sets up [UnaryServerInterceptor].
type Option func(*settings)

type settings struct {
	methods         map[string]bool
	optional        bool
	scope           func(ctx context.Context, request any) string
	maxRequestBytes int
	run             []onced.RunOption
	log             *slog.Logger
}

// Methods are those whose calls run once, such as "/shop.v1.Orders/Create"; all others pass. All without it, but for gRPC's
// own, such as those of /grpc.health.v1.Health: who asks them has no keys.
func Methods(methods ...string) Option {
	return func(s *settings) {
		s.methods = map[string]bool{}
		for _, method := range methods {
			s.methods[method] = true
		}
	}
}

// Optional lets calls without a key pass. They are refused without it.
func Optional() Option {
	return func(s *settings) { s.optional = true }
}

// Scope says whose key a call has, so that two tenants may use the same one. It must be the same when the call is repeated: an
// account or tenant, never a token. A call for which it is empty is refused.
func Scope(of func(ctx context.Context, request any) string) Option {
	return func(s *settings) { s.scope = of }
}

// With says how each call is run: [onced.Namespace], [onced.Wait] (10 s without it; 0 answers at once), [onced.LockTTL],
// [onced.Retention], [onced.OnLapse], [onced.FailOpen]; and by [onced.OnFailure] what becomes of the key of an error that is
// neither final nor known to have done nothing, or when the handler panics.
func With(options ...onced.RunOption) Option {
	return func(s *settings) { s.run = append(s.run, options...) }
}

// MaxRequestBytes is how large a request with a key may be, encoded. 1 MiB without it.
func MaxRequestBytes(most int) Option {
	return func(s *settings) { s.maxRequestBytes = most }
}

// Logger is where the interceptor logs what no caller is told. [slog.Default] without it.
func Logger(log *slog.Logger) Option {
	return func(s *settings) { s.log = log }
}

// StreamServerInterceptor refuses calls with a key of methods that stream: their answers cannot be stored. Those of gRPC's own,
// such as Watch of /grpc.health.v1.Health, pass.
func StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !isOfGRPC(info.FullMethod) && len(metadata.ValueFromIncomingContext(stream.Context(), keyHeader)) > 0 {
			return refusal(codes.InvalidArgument, idempotency.KeyInvalid, "A method that streams takes no idempotency key.")
		}
		return handler(server, stream)
	}
}

// UnaryServerInterceptor makes each call run once for its key. Answers are read by the types that generated code has registered.
func UnaryServerInterceptor(client *onced.Client, options ...Option) grpc.UnaryServerInterceptor {
	s := settings{maxRequestBytes: defaultMaxRequestBytes, run: []onced.RunOption{onced.Wait(defaultWait)}, log: slog.Default()}
	for _, option := range options {
		option(&s)
	}
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		keys := metadata.ValueFromIncomingContext(ctx, keyHeader)
		if !s.takesKeys(info.FullMethod) || (s.optional && len(keys) == 0) {
			return handler(ctx, request)
		}
		key, code := s.key(ctx, keys, request)
		if code != "" {
			return nil, refused(code)
		}
		c := call{settings: &s, client: client, info: info, handler: handler, request: request}
		return c.run(ctx, key)
	}
}

func (s *settings) takesKeys(fullMethod string) bool {
	if s.methods != nil {
		return s.methods[fullMethod]
	}
	return !isOfGRPC(fullMethod)
}

// isOfGRPC tells the methods of gRPC itself: health, reflection and the like.
func isOfGRPC(fullMethod string) bool {
	return strings.HasPrefix(fullMethod, "/grpc.")
}

// key is that of the call in onced; or why there is none.
func (s *settings) key(ctx context.Context, keys []string, request any) (string, idempotency.Code) {
	if len(keys) == 0 {
		return "", idempotency.KeyMissing
	}
	key, ok := idempotency.ParseKey(keys[0], s.scope != nil)
	if !ok || len(keys) > 1 {
		return "", idempotency.KeyInvalid
	}
	if s.scope == nil {
		return key, ""
	}
	scope := s.scope(ctx, request)
	if scope == "" {
		return "", idempotency.ScopeMissing
	}
	return idempotency.Scoped(scope, key), ""
}

// A call is one call and its answer.
type call struct {
	*settings
	client  *onced.Client
	info    *grpc.UnaryServerInfo
	handler grpc.UnaryHandler
	request any
	// What the handler answered, if it ran here.
	ran      bool
	response any
	err      error
}

func (c *call) run(ctx context.Context, key string) (any, error) {
	response, err := responseOf(c.info.FullMethod)
	if err != nil {
		return nil, c.refuse(ctx, idempotency.Refused, err)
	}
	encoded, err := encode(c.request)
	if err != nil {
		return nil, c.refuse(ctx, idempotency.Refused, err)
	}
	if len(encoded) > c.maxRequestBytes {
		return nil, refused(idempotency.TooLarge)
	}
	options := append(c.settings.run[:len(c.settings.run):len(c.settings.run)],
		onced.Using(onced.Raw), onced.Detached(),
		onced.Fingerprint(idempotency.Fingerprint(encoded, "grpc", c.info.FullMethod)))
	done, err := onced.Run(ctx, c.client, key, c.handle, options...)
	var final *onced.FinalError
	var unstorable *onced.UnstorableError
	switch {
	case errors.Is(err, onced.ErrClaimLost):
		return nil, refused(idempotency.ClaimLost)
	case errors.As(err, &unstorable):
		return nil, c.refuse(ctx, idempotency.NotStorable, err)
	case c.ran:
		if errors.Is(err, onced.ErrNotStored) {
			c.log.WarnContext(ctx, "oncedgrpc: an answer is handed out that is not known to be stored", "error", err)
		}
		return c.response, c.err
	case errors.As(err, &final):
		return nil, c.replayed(ctx, final.Status.Err())
	case err != nil:
		return nil, c.refuse(ctx, idempotency.CodeOf(err), err)
	}
	if done.Value.GetContentType() != contentType {
		return nil, c.refuse(ctx, idempotency.Refused, fmt.Errorf("the outcome of the key is %q, and no answer over gRPC: is it used for other work as well?", done.Value.GetContentType()))
	}
	if err := proto.Unmarshal(done.Value.GetResponse(), response); err != nil {
		return nil, c.refuse(ctx, idempotency.Refused, err)
	}
	return response, c.replayed(ctx, nil)
}

// replayed marks an answer as one that was stored.
func (c *call) replayed(ctx context.Context, answer error) error {
	if err := grpc.SetHeader(ctx, metadata.Pairs(replayedHeader, "true")); err != nil {
		c.log.DebugContext(ctx, "oncedgrpc: a replay was not marked as one", "error", err)
	}
	return answer
}

// handle is the work: the handler's answer, as it is stored.
func (c *call) handle(ctx context.Context, claim *onced.Claim) (*oncedv1.Outcome, error) {
	c.response, c.err = c.handler(ctx, c.request)
	c.ran = true
	if c.err != nil {
		return nil, verdict(c.err)
	}
	if !claim.Protected() {
		return nil, nil
	}
	encoded, err := encode(c.response)
	if err != nil {
		return nil, onced.Fail(onced.InDoubt, &onced.UnstorableError{Err: err})
	}
	return &oncedv1.Outcome{Result: &oncedv1.Outcome_Response{Response: encoded}, ContentType: contentType}, nil
}

// verdict is what the work fails with when a handler does. What the handler said itself stands.
func verdict(err error) error {
	if onced.SaysOfKey(err) {
		return err
	}
	st, _ := status.FromError(err)
	switch st.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition,
		codes.OutOfRange, codes.Unimplemented:
		return onced.FinalStatus(st)
	case codes.Unauthenticated, codes.ResourceExhausted:
		return onced.Fail(onced.Retry, err) // The request was not looked at.
	default:
		return err
	}
}

func encode(message any) ([]byte, error) {
	switch message := message.(type) {
	case proto.Message:
		return canonical.Encode(message)
	case protoadapt.MessageV1:
		return canonical.Encode(protoadapt.MessageV2Of(message))
	default:
		return nil, fmt.Errorf("%T is no message of protobuf", message)
	}
}

// refuse logs why, and answers by the code.
func (c *call) refuse(ctx context.Context, code idempotency.Code, err error) error {
	switch code {
	case idempotency.Refused, idempotency.Unavailable, idempotency.InDoubt, idempotency.NotStorable:
		if ctx.Err() == nil || code != idempotency.Unavailable {
			c.log.WarnContext(ctx, "oncedgrpc: a call was refused", "method", c.info.FullMethod, "code", code, "error", err)
		}
	}
	return refused(code)
}

func refused(code idempotency.Code) error {
	return refusal(statusOf(code), code, code.Why())
}

func statusOf(code idempotency.Code) codes.Code {
	switch code {
	case idempotency.KeyMissing, idempotency.KeyInvalid, idempotency.ScopeMissing:
		return codes.InvalidArgument
	case idempotency.InProgress, idempotency.ClaimLost:
		return codes.Aborted
	case idempotency.InDoubt, idempotency.FingerprintMismatch:
		return codes.FailedPrecondition
	case idempotency.TooLarge:
		return codes.ResourceExhausted
	case idempotency.Unavailable:
		return codes.Unavailable
	default:
		return codes.Internal
	}
}

func refusal(code codes.Code, reason idempotency.Code, why string) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: errorDomain, Reason: string(reason)}}
	if code == codes.Aborted || code == codes.Unavailable {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	}
	st, err := status.New(code, why).WithDetails(details...)
	if err != nil {
		return status.Error(code, why)
	}
	return st.Err()
}
