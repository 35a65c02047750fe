package onced

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

const (
	// The largest call that a session takes, and how many may be open in it.
	sessionMaxBytes, sessionMaxCalls = 64 << 10, 512
	// How long a session may take to open, and to end once it is told to.
	sessionTurn = 10 * time.Second
	// How long one stands that carries nothing.
	sessionIdle = 30 * time.Second
)

type sessionStream = grpc.BidiStreamingClient[oncedv1.SessionRequest, oncedv1.SessionResponse]

// A session is a stream of calls.
type session struct {
	line   *line
	stream sessionStream
	lastID atomic.Uint64
	// How many answers have come.
	came atomic.Uint64

	// What follows is guarded by the line's mutex.

	// What is to be sent. It has room for all that the limits let in, so that nobody waits to put something here.
	queue chan *oncedv1.SessionRequest
	// Where the answers of open calls go. They are closed without one if the session ends first.
	open map[uint64]chan *oncedv1.SessionResponse
	// Whether it takes no more calls.
	retired bool
	// Closed with the queue, when no call is open any more and none will be.
	over chan struct{}
	// Since when it carries nothing, while it does not.
	idle moment
}

// Why a session has no answer to a call.
var (
	errNotTaken     = errors.New("the session takes no such call")
	errSessionEnded = errors.New("the session ended before it answered")
)

func newSession(line *line, stream sessionStream) *session {
	return &session{
		line: line, stream: stream, idle: line.transport.clock(),
		queue: make(chan *oncedv1.SessionRequest, 2*sessionMaxCalls), open: map[uint64]chan *oncedv1.SessionResponse{},
		over: make(chan struct{}),
	}
}

// call makes a call in the session, and waits so long for its answer. Its errors: errNotTaken, errSessionEnded, errSilent, the
// *Refusal of its credentials, or that of ctx. After all but the first it may have been carried out.
func (s *session) call(ctx context.Context, request *oncedv1.SessionRequest, most time.Duration) (*oncedv1.SessionResponse, error) {
	before := s.came.Load()
	answered := s.take(request)
	if answered == nil {
		return nil, errNotTaken
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	var answer *oncedv1.SessionResponse
	select {
	case answer = <-answered:
	case <-ctx.Done():
		s.takeBack(request.GetId())
		return nil, ctx.Err()
	case <-timer.C:
		s.takeBack(request.GetId())
		if s.came.Load() == before {
			s.retireNow() // Behind a gateway that answers pings, the server may be gone.
		}
		return nil, errSilent
	}
	if answer == nil {
		return nil, errSessionEnded
	}
	if failed := answer.GetError(); failed != nil {
		if err := s.unlikeUnary(status.FromProto(failed)); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// unlikeUnary is what an error comes to that does not count as that of a unary call does; else nil.
func (s *session) unlikeUnary(failed *status.Status) error {
	refusal := refusalOf(failed)
	switch {
	case failed.Code() == codes.DeadlineExceeded:
		return errSilent // The server kept the time that the client keeps of a unary call.
	case refusal.Reason == "OVERLOADED" && refusal.Metadata["limit"] == "max_session_calls":
		return errNotTaken
	case refusal.Reason == "DRAINING":
		s.retireNow()
		return errSessionEnded
	case strings.HasPrefix(refusal.Reason, "CREDENTIALS"):
		s.retireNow()
		return refusal
	}
	return nil
}

// take gives a call its id, and has it sent. It returns where the answer will come; nil if the call is not taken.
func (s *session) take(request *oncedv1.SessionRequest) <-chan *oncedv1.SessionResponse {
	request.Id = s.lastID.Add(1)
	// Encoded here and now: what is in it may be changed before its turn comes, and what cannot be encoded is to fail alone.
	encoded, err := proto.Marshal(request)
	if err != nil || len(encoded) > sessionMaxBytes {
		return nil
	}
	ready := &oncedv1.SessionRequest{}
	ready.ProtoReflect().SetUnknown(encoded) // Which is sent as it is.

	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	// There must be room to cancel each open call.
	if s.retired || len(s.open) >= sessionMaxCalls || len(s.queue) >= sessionMaxCalls {
		return nil
	}
	answered := make(chan *oncedv1.SessionResponse, 1)
	s.open[request.GetId()] = answered
	s.queue <- ready
	return answered
}

// takeBack cancels a call, if it is still open.
func (s *session) takeBack(id uint64) {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	if _, ok := s.open[id]; ok {
		s.queue <- &oncedv1.SessionRequest{Id: id, Call: &oncedv1.SessionRequest_Cancel{Cancel: &oncedv1.CancelCall{}}}
		s.remove(id)
	}
}

// write sends what is to be sent, and ends the stream when no more will come.
func (s *session) write() {
	for request := range s.queue {
		if s.stream.Send(request) != nil {
			return // Whoever reads learns why.
		}
	}
	_ = s.stream.CloseSend() // It never fails.
}

// cutIfLate cancels a session that does not end in time, also one that takes nothing that is sent.
func (s *session) cutIfLate(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-s.over:
	case <-ctx.Done():
		return
	}
	clock := s.line.transport.clock
	if clock.sleepUntil(ctx, clock()+sessionTurn) {
		cancel()
	}
}

// read hands out answers until the stream ends, and returns why it did.
func (s *session) read() error {
	for {
		answer, err := s.stream.Recv()
		if err != nil {
			return err
		}
		s.came.Add(1)
		s.line.mu.Lock()
		if answered, ok := s.open[answer.GetId()]; ok { // Else its caller has given up.
			answered <- answer
			s.remove(answer.GetId())
		}
		s.line.mu.Unlock()
	}
}

// endIdle ends a session that has carried nothing for long enough.
func (s *session) endIdle(ctx context.Context) {
	clock := s.line.transport.clock
	for next := clock(); clock.sleepUntil(ctx, next); {
		s.line.mu.Lock()
		if len(s.open) > 0 {
			s.idle = clock()
		}
		next = s.idle + sessionIdle
		if clock() >= next {
			s.retire()
			s.line.mu.Unlock()
			return
		}
		s.line.mu.Unlock()
	}
}

func (s *session) retireNow() {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	s.retire()
}

// remove forgets an open call. The caller has the mutex, here and below.
func (s *session) remove(id uint64) {
	delete(s.open, id)
	if len(s.open) > 0 {
		return
	}
	s.idle = s.line.transport.clock()
	if s.retired {
		s.finish()
	}
}

// retire lets the session take no more calls, and end with its last one.
func (s *session) retire() {
	if s.retired {
		return
	}
	s.retired = true
	s.line.session = nil
	if len(s.open) == 0 {
		s.finish()
	}
}

// finish is for when nothing is to be sent any more.
func (s *session) finish() {
	close(s.queue)
	close(s.over)
}

// end is called when the stream has ended: open calls will not be answered.
func (s *session) end() {
	s.retire()
	for id, answered := range s.open {
		close(answered)
		s.remove(id)
	}
}

// inSession is a call as a session carries it.
func inSession(request proto.Message, timeout time.Duration) *oncedv1.SessionRequest {
	sent := &oncedv1.SessionRequest{Timeout: durationpb.New(timeout)}
	switch request := request.(type) {
	case *oncedv1.BeginRequest:
		sent.Call = &oncedv1.SessionRequest_Begin{Begin: request}
	case *oncedv1.CompleteRequest:
		sent.Call = &oncedv1.SessionRequest_Complete{Complete: request}
	case *oncedv1.RenewRequest:
		sent.Call = &oncedv1.SessionRequest_Renew{Renew: request}
	case *oncedv1.ReleaseRequest:
		sent.Call = &oncedv1.SessionRequest_Release{Release: request}
	}
	return sent
}

// contentOf is what a session's answer holds, but for an error; nil if that is nothing known here.
func contentOf(answer *oncedv1.SessionResponse) proto.Message {
	switch answer := answer.GetAnswer().(type) {
	case *oncedv1.SessionResponse_Begin:
		return answer.Begin
	case *oncedv1.SessionResponse_Complete:
		return answer.Complete
	case *oncedv1.SessionResponse_Renew:
		return answer.Renew
	case *oncedv1.SessionResponse_Release:
		return answer.Release
	default:
		return nil
	}
}
