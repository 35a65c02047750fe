package oncedgrpc_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/testserver"
	"onced.dev/go/onced/oncedgrpc"
	oncedv1 "onced.dev/go/onced/v1"
)

const hangs = 30 * time.Second

var server *testserver.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = testserver.Launch("--defaults-max-outcome-bytes", "64KiB"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Kill()
	os.Exit(code)
}

// A house is a service of gRPC, that of onced's operators, in which a handler runs once for a key.
type house struct {
	handle func(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error)
	runs   atomic.Int64
	oncedv1.AdminServiceClient
	watch  oncedv1.IdempotencyServiceClient
	health healthv1.HealthClient
}

// A shop is the side of the house that serves.
type shop struct {
	oncedv1.UnimplementedAdminServiceServer
	house *house
}

func (s *shop) List(ctx context.Context, request *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
	s.house.runs.Add(1)
	return s.house.handle(ctx, request)
}

func open(t *testing.T, servers string, handle func(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error), options ...oncedgrpc.Option) *house {
	t.Helper()
	client, err := onced.New(servers, onced.WithTimeout(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{handle: handle}
	serving := grpc.NewServer(
		grpc.UnaryInterceptor(oncedgrpc.UnaryServerInterceptor(client, options...)),
		grpc.StreamInterceptor(oncedgrpc.StreamServerInterceptor()),
	)
	oncedv1.RegisterAdminServiceServer(serving, &shop{house: h})
	oncedv1.RegisterIdempotencyServiceServer(serving, oncedv1.UnimplementedIdempotencyServiceServer{})
	healthv1.RegisterHealthServer(serving, health.NewServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = serving.Serve(listener) }()
	connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	h.AdminServiceClient, h.watch = oncedv1.NewAdminServiceClient(connection), oncedv1.NewIdempotencyServiceClient(connection)
	h.health = healthv1.NewHealthClient(connection)
	t.Cleanup(func() {
		_ = connection.Close()
		serving.GracefulStop()
		ctx, cancel := context.WithTimeout(context.Background(), hangs)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *house) call(t *testing.T, namespace string, keys ...string) (*oncedv1.ListResponse, bool, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	for _, key := range keys {
		ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", key)
	}
	var header metadata.MD
	response, err := h.List(ctx, &oncedv1.ListRequest{Namespace: namespace}, grpc.Header(&header))
	return response, len(header.Get("idempotent-replayed")) == 1 && header.Get("idempotent-replayed")[0] == "true", err
}

func (h *house) ran(t *testing.T, want int64) {
	t.Helper()
	if ran := h.runs.Load(); ran != want {
		t.Errorf("the handler ran %d times, and not %d", ran, want)
	}
}

// refused checks that an error is a refusal of that code and reason.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	told, retry := "", false
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "onced.dev" {
				told = detail.GetReason()
			}
		case *errdetails.RetryInfo:
			retry = true
		}
	}
	if st.Code() != code || told != reason || retry != (code == codes.Aborted || code == codes.Unavailable) {
		t.Errorf("%v, %q, to be retried: %v", err, told, retry)
	}
}

func key(t *testing.T) string { return strings.ReplaceAll(t.Name(), "/", " ") }

func empty(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
	return &oncedv1.ListResponse{}, nil
}

func TestARepetitionGetsTheSameAnswer(t *testing.T) {
	h := open(t, server.Address, func(_ context.Context, request *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
		return &oncedv1.ListResponse{NextPageToken: "after " + request.GetNamespace()}, nil
	})
	for _, again := range []bool{false, true} {
		response, replayed, err := h.call(t, "shop", key(t))
		if err != nil || response.GetNextPageToken() != "after shop" || replayed != again {
			t.Errorf("%v, replayed: %v, %v", response, replayed, err)
		}
	}
	h.ran(t, 1)
	_, _, err := h.call(t, "another", key(t))
	refused(t, err, codes.FailedPrecondition, "FINGERPRINT_MISMATCH")
	h.ran(t, 1)
}

func TestCallsWithoutAUsableKeyAreRefused(t *testing.T) {
	h := open(t, server.Address, empty)
	_, _, err := h.call(t, "shop")
	refused(t, err, codes.InvalidArgument, "IDEMPOTENCY_KEY_MISSING")
	_, _, err = h.call(t, "shop", `"open`)
	refused(t, err, codes.InvalidArgument, "IDEMPOTENCY_KEY_INVALID")
	_, _, err = h.call(t, "shop", "a", "b")
	refused(t, err, codes.InvalidArgument, "IDEMPOTENCY_KEY_INVALID")
	h.ran(t, 0)
	for _, option := range []oncedgrpc.Option{oncedgrpc.Optional(), oncedgrpc.Methods("/onced.v1.AdminService/Delete")} {
		h = open(t, server.Address, empty, option)
		if _, _, err = h.call(t, "shop"); err != nil {
			t.Error(err)
		}
		h.ran(t, 1)
	}
}

func TestWhoAsksForHealthNeedsNoKeyUnlessThatWasSaid(t *testing.T) {
	h := open(t, server.Address, empty)
	if _, err := h.health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	h = open(t, server.Address, empty, oncedgrpc.Methods(healthv1.Health_Check_FullMethodName))
	_, err := h.health.Check(t.Context(), &healthv1.HealthCheckRequest{})
	refused(t, err, codes.InvalidArgument, "IDEMPOTENCY_KEY_MISSING")
}

func TestAMethodThatStreamsTakesNoKey(t *testing.T) {
	h := open(t, server.Address, empty)
	for keyed, want := range map[bool]codes.Code{true: codes.InvalidArgument, false: codes.Unimplemented} {
		ctx := t.Context()
		if keyed {
			ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", "a")
		}
		stream, err := h.watch.Watch(ctx, &oncedv1.WatchRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("with a key %v: %v", keyed, err)
		}
	}
}

func TestWhoWatchesHealthMayShowAKey(t *testing.T) {
	h := open(t, server.Address, empty)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "a"), hangs)
	defer cancel()
	stream, err := h.health.Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if health, err := stream.Recv(); err != nil || health.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", health, err)
	}
}

func TestAKeyBelongsToItsScope(t *testing.T) {
	h := open(t, server.Address, func(ctx context.Context, request *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
		scope := sha256.Sum256([]byte(request.GetNamespace()))
		if claim := onced.ClaimFrom(ctx); claim.Namespace() != "default" || claim.Key() != hex.EncodeToString(scope[:16])+":"+key(t) {
			t.Errorf("the claim is of %s in %s", claim.Key(), claim.Namespace())
		}
		return &oncedv1.ListResponse{}, nil
	}, oncedgrpc.Scope(func(_ context.Context, request any) string {
		return request.(*oncedv1.ListRequest).GetNamespace()
	}))
	for _, scope := range []string{"acme", "other", "acme"} {
		if _, _, err := h.call(t, scope, key(t)); err != nil {
			t.Error(err)
		}
	}
	h.ran(t, 2)
	_, _, err := h.call(t, "", key(t))
	refused(t, err, codes.InvalidArgument, "SCOPE_MISSING")
}

func TestARequestThatIsTooLargeIsRefused(t *testing.T) {
	h := open(t, server.Address, empty, oncedgrpc.MaxRequestBytes(10))
	_, _, err := h.call(t, strings.Repeat("x", 20), key(t))
	refused(t, err, codes.ResourceExhausted, "REQUEST_TOO_LARGE")
	h.ran(t, 0)
}

func TestWhatBecomesOfAnErrorGoesByItsCodeUnlessTheHandlerSaysSo(t *testing.T) {
	inDoubt := oncedgrpc.With(onced.OnFailure(onced.InDoubt))
	detailed, err := status.New(codes.NotFound, "no such order").WithDetails(&errdetails.RequestInfo{RequestId: "17"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err     error
		options []oncedgrpc.Option
		again   string
		code    codes.Code
	}{
		"not found":           {detailed.Err(), nil, "replay", codes.NotFound},
		"wrapped":             {fmt.Errorf("at the shop: %w", detailed.Err()), nil, "replay", codes.NotFound},
		"invalid":             {status.Error(codes.InvalidArgument, "no"), []oncedgrpc.Option{inDoubt}, "replay", codes.InvalidArgument},
		"exhausted":           {status.Error(codes.ResourceExhausted, "no"), []oncedgrpc.Option{inDoubt}, "run", codes.ResourceExhausted},
		"unauthenticated":     {status.Error(codes.Unauthenticated, "no"), []oncedgrpc.Option{inDoubt}, "run", codes.Unauthenticated},
		"internal":            {status.Error(codes.Internal, "no"), nil, "run", codes.Internal},
		"internal, in doubt":  {status.Error(codes.Internal, "no"), []oncedgrpc.Option{inDoubt}, "in doubt", codes.Internal},
		"no status":           {errors.New("no"), nil, "run", codes.Unknown},
		"said to be retried":  {onced.Fail(onced.Retry, status.Error(codes.NotFound, "no")), nil, "run", codes.NotFound},
		"said to be in doubt": {onced.Fail(onced.InDoubt, status.Error(codes.NotFound, "no")), nil, "in doubt", codes.NotFound},
		"said to be final":    {onced.Final(codes.Internal, "no"), nil, "replay", codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, server.Address, func(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error) { return nil, test.err }, test.options...)
			_, replayed, first := h.call(t, "shop", key(t))
			if status.Code(first) != test.code || replayed {
				t.Errorf("%v, replayed: %v", first, replayed)
			}
			_, replayed, again := h.call(t, "shop", key(t))
			switch test.again {
			case "in doubt":
				refused(t, again, codes.FailedPrecondition, "IN_DOUBT")
				h.ran(t, 1)
			case "run":
				h.ran(t, 2)
			default:
				h.ran(t, 1)
				if status.Code(again) != test.code || len(status.Convert(again).Details()) != len(status.Convert(test.err).Details()) {
					t.Errorf("%v", again)
				}
			}
			if replayed != (test.again == "replay") {
				t.Errorf("it is a replay: %v", replayed)
			}
		})
	}
}

func TestTheHandlerGoesOnWhenItsCallerLeaves(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	h := open(t, server.Address, func(ctx context.Context, _ *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
		defer close(ended)
		close(started)
		time.Sleep(300 * time.Millisecond) // The server has noticed.
		if _, bounded := ctx.Deadline(); ctx.Err() != nil || bounded || onced.ClaimFrom(ctx) == nil {
			t.Errorf("its context: %v", ctx)
		}
		return &oncedv1.ListResponse{NextPageToken: "charged"}, nil
	})
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", key(t)))
	go func() {
		<-started
		cancel()
	}()
	if _, err := h.List(ctx, &oncedv1.ListRequest{Namespace: "shop"}); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	<-ended
	response, replayed, err := h.call(t, "shop", key(t))
	if err != nil || !replayed || response.GetNextPageToken() != "charged" {
		t.Errorf("%v, %v", response, err)
	}
	h.ran(t, 1)
}

func TestAnAnswerThatIsTooLargeIsRefusedAndItsKeyInDoubt(t *testing.T) {
	h := open(t, server.Address, func(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
		return &oncedv1.ListResponse{NextPageToken: strings.Repeat("x", 70_000)}, nil
	})
	_, _, err := h.call(t, "shop", key(t))
	refused(t, err, codes.Internal, "RESPONSE_NOT_STORABLE")
	_, _, err = h.call(t, "shop", key(t))
	refused(t, err, codes.FailedPrecondition, "IN_DOUBT")
	h.ran(t, 1)
}

func TestARepetitionIsToldOfAHolder(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	h := open(t, server.Address, func(context.Context, *oncedv1.ListRequest) (*oncedv1.ListResponse, error) {
		close(started)
		<-finish
		return &oncedv1.ListResponse{}, nil
	}, oncedgrpc.With(onced.Wait(0)))
	ended := make(chan error, 1)
	go func() {
		_, _, err := h.call(t, "shop", key(t))
		ended <- err
	}()
	<-started
	_, _, err := h.call(t, "shop", key(t))
	refused(t, err, codes.Aborted, "REQUEST_IN_PROGRESS")
	close(finish)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWithoutOncedNothingRunsUnlessThatWasSaid(t *testing.T) {
	gone := testserver.Start(t)
	gone.Kill()
	h := open(t, gone.Address, empty)
	_, _, err := h.call(t, "shop", key(t))
	refused(t, err, codes.Unavailable, "UNAVAILABLE")
	h.ran(t, 0)
	h = open(t, gone.Address, empty, oncedgrpc.With(onced.FailOpen(50*time.Millisecond)))
	if _, _, err := h.call(t, "shop", key(t)); err != nil {
		t.Error(err)
	}
	h.ran(t, 1)
}

func TestAnOutcomeThatIsNoAnswerIsRefused(t *testing.T) {
	client := onced.MustNew(server.Address)
	if _, err := onced.Run(t.Context(), client, key(t), func(context.Context, *onced.Claim) (int, error) { return 1, nil }); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	h := open(t, server.Address, empty)
	_, _, err := h.call(t, "shop", key(t))
	refused(t, err, codes.Internal, "REFUSED")
	h.ran(t, 0)
}
