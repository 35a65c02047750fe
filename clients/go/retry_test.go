package onced

import (
	"math"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestOnlyWhatMayPassIsRepeated(t *testing.T) {
	for _, test := range []struct {
		code   codes.Code
		reason string
		again  bool
	}{
		{codes.Unavailable, "STORE_UNAVAILABLE", true},
		{codes.DeadlineExceeded, "DEADLINE_EXCEEDED", true},
		{codes.Unavailable, "", true},
		{codes.Canceled, "", true},
		{codes.Unknown, "", true},
		{codes.Internal, "", false},
		{codes.Canceled, "CANCELLED", false},
		{codes.Canceled, "NEVER_HEARD_OF", false},
		{codes.Internal, "INTERNAL", false},
		{codes.Aborted, "CLAIM_LOST", false},
		{codes.ResourceExhausted, "STORE_FULL", false},
		{codes.InvalidArgument, "KEY_REQUIRED", false},
		{codes.PermissionDenied, "", false},
	} {
		failed := status.New(test.code, "no")
		if test.reason != "" {
			failed = status.Convert(refusal(test.code, test.reason))
		}
		if say := adviceOf(failed, nil); say.again != test.again {
			t.Errorf("%v %s: %+v", test.code, test.reason, say)
		}
	}
}

func TestWhatABrokenConnectionLeavesIsRepeatedUnderEveryCode(t *testing.T) {
	for _, failed := range []*status.Status{
		status.New(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"),
		status.New(codes.ResourceExhausted, "stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM"),
		status.New(codes.Internal, "server closed the stream without sending trailers"),
		status.New(codes.Internal, "unexpected EOF"),
	} {
		if !adviceOf(failed, nil).again {
			t.Errorf("%v is final", failed)
		}
	}
}

func TestABrokenConnectionIsNoAnswer(t *testing.T) {
	sent := metadata.Pairs("content-type", "application/grpc")
	for _, test := range []struct {
		failed  *status.Status
		trailer metadata.MD
		answer  bool
	}{
		{status.New(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"), nil, false},
		{status.New(codes.Unknown, "no"), nil, false},
		{status.New(codes.Unknown, "no"), sent, true},
		{status.New(codes.Canceled, "no"), sent, true},
		{status.New(codes.Internal, "no"), sent, true},
		{status.New(codes.Unavailable, "no"), sent, false},
		{status.New(codes.Unknown, "unexpected HTTP status code received from server: 500 (Internal Server Error)"), nil, true},
	} {
		if answer := isAnswer(test.failed, test.trailer); answer != test.answer {
			t.Errorf("%v: %v", test.failed, answer)
		}
	}
}

func TestAPushbackIsReadFromMetadataOrRetryInfo(t *testing.T) {
	failed := status.Convert(refusal(codes.Unavailable, "OVERLOADED"))
	for text, want := range map[string]advice{
		"250": {true, 250 * time.Millisecond}, "0": {true, 0}, "-1": {}, "soon": {}, "": {},
	} {
		if say := adviceOf(failed, metadata.Pairs(pushbackHeader, text)); say != want {
			t.Errorf("%q: %+v", text, say)
		}
	}
	later, err := status.New(codes.Unavailable, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if say := adviceOf(later, nil); say != (advice{true, 3 * time.Second}) {
		t.Errorf("%+v", say)
	}
	never, err := status.New(codes.Unavailable, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: math.MaxInt64}})
	if err != nil {
		t.Fatal(err)
	}
	if pause := pauseBefore(1, 1, adviceOf(never, nil).pushback); pause < 24*time.Hour {
		t.Errorf("it is asked again after %v", pause)
	}
}

func TestOtherServersAreTriedAtOnceAndRoundsWaitLongerUpToACap(t *testing.T) {
	pushback := 5 * time.Second
	for attempts, want := range map[int]bool{1: false, 2: false, 3: true, 4: false, 6: true} {
		pause := pauseBefore(attempts, 3, pushback)
		if waits := pause >= pushback && pause <= pushback+pushback/8; waits != want {
			t.Errorf("%d: %v", attempts, pause)
		}
	}
	for attempts := 1; attempts < 100; attempts++ {
		if pause := pauseBefore(attempts, 1, 0); pause < firstPause/2 || pause > longestPause {
			t.Errorf("%d: %v", attempts, pause)
		}
	}
	if pause := pauseBefore(90, 1, 0); pause < longestPause/2 {
		t.Errorf("the last pause is %v", pause)
	}
}
