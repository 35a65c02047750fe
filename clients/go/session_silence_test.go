package onced

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

func TestACallWhoseTimeIsUpIsTakenBack(t *testing.T) {
	const most = 100 * time.Millisecond
	for _, grace := range []time.Duration{0, sessionGrace} {
		server := startFake(t)
		server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
			if request.GetCancel() == nil {
				return nil, nil
			}
			// Both come too late: the answer, and that it was cancelled.
			answers, _ := renewed(request)
			late, _ := refuses(refusal(codes.Canceled, "CANCELLED"))(request)
			return append(answers, late...), nil
		})
		client, line := inSessionOf(t, server.address, holding)
		s := line.session
		started := time.Now()
		got, err := renew(t, client, patience{total: most, attempt: most, grace: grace})
		var unavailable *UnavailableError
		if !errors.As(err, &unavailable) || unavailable.told || unavailable.Last.Code != codes.DeadlineExceeded || !got.unsettled {
			t.Errorf("%+v, %v", got, err)
		}
		if took := time.Since(started); took < most+min(grace, most/4) || took > hangs/2 {
			t.Errorf("it took %v", took)
		}
		eventually(t, "it is cancelled", func() bool { return len(sentInSession(server, true)) == 1 })
		call := sentInSession(server, false)[0]
		timeout := call.GetTimeout().AsDuration()
		if timeout > most || timeout < most/2 || sentInSession(server, true)[0].GetId() != call.GetId() {
			t.Errorf("%v", call)
		}
		if len(server.asked("Renew")) != 0 || len(s.open) != 0 {
			t.Error("it was made again, or something stays in the session")
		}
	}
}

func TestACallThatIsAnsweredThatItsTimeIsUpCountsAsSilent(t *testing.T) {
	for name, answer := range map[string]error{
		"by onced": refusal(codes.DeadlineExceeded, "TIMEOUT"), "by another": status.Error(codes.DeadlineExceeded, "no"),
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
				if len(server.asked("Session")) > 1 {
					return renewed(request)
				}
				return refuses(answer)(request)
			})
			client, line := inSessionOf(t, server.address, holding)
			got, err := renew(t, client, patient)
			if err != nil || !cameInSession(got) || !got.unsettled || !line.stands() {
				t.Errorf("%+v, %v, or the session was left", got, err)
			}
		})
	}
}

func TestASessionOnWhichNothingComesInACallsTimeTakesNoMoreCalls(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(silent)
	client, line := inSessionOf(t, server.address, holding)
	first := make(chan answer[*oncedv1.RenewResponse], 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		got, _ := renewKey(ctx, client, "first", patient)
		first <- got
	}()
	server.until(t, "Session", 1)
	got, err := renew(t, client, patience{total: hangs, attempt: 50 * time.Millisecond, grace: sessionGrace})
	if err != nil || cameInSession(got) || !got.unsettled {
		t.Errorf("%+v, %v", got, err)
	}
	if line.stands() || len(server.asked("the end")) != 0 {
		t.Error("it still takes calls, or has ended before its last call")
	}
	cancel()
	<-first
	server.until(t, "the end", 1)
	if cancels := sentInSession(server, true); len(cancels) != 2 {
		t.Errorf("it was sent %v", cancels)
	}
	eventually(t, "it is forgotten", line.isFree)
}

func TestASessionOnWhichSomethingComesInACallsTimeGoesOn(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		if request.GetRenew().GetKey() == "silent" {
			return nil, nil
		}
		return renewed(request)
	})
	client, line := inSessionOf(t, server.address, holding)
	ended := make(chan error, 1)
	go func() {
		_, err := renewKey(t.Context(), client, "silent", patience{total: time.Second, attempt: time.Second})
		ended <- err
	}()
	server.until(t, "Session", 1)
	if got, err := renew(t, client, patient); err != nil || !cameInSession(got) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-ended; err == nil || !line.stands() {
		t.Errorf("%v, or the session was left", err)
	}
}
