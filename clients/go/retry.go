package onced

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// The pause before the second round over the servers, before jitter.
	firstPause = 50 * time.Millisecond
	// The longest pause between rounds, before jitter.
	longestPause = 2 * time.Second
	// What gRPC says of an answer that is not its own.
	notGRPC = "unexpected HTTP status code received from server"
	// By gRPC's retry design: in how many milliseconds to try again, or anything else for never.
	pushbackHeader = "grpc-retry-pushback-ms"
)

// advice is what a failed attempt says about the next one. Every call of onced may be repeated with the same arguments,
// so the only questions are whether it would help, and how long to wait.
type advice struct {
	again bool
	// How long the server asked to be left alone.
	pushback time.Duration
}

func adviceOf(failed *status.Status, trailer metadata.MD) advice {
	if !worthRepeating(failed) {
		return advice{}
	}
	if pushback := trailer.Get(pushbackHeader); len(pushback) > 0 {
		millis, err := strconv.ParseUint(pushback[0], 10, 32)
		if err != nil {
			return advice{}
		}
		return advice{again: true, pushback: time.Duration(millis) * time.Millisecond}
	}
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return advice{again: true, pushback: min(max(info.GetRetryDelay().AsDuration(), 0), longestTime)}
		}
	}
	return advice{again: true}
}

func worthRepeating(failed *status.Status) bool {
	switch failed.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.Canceled, codes.Unknown:
		// Broken connections come as these, without a reason of the server's.
		return refusalOf(failed).Reason == ""
	default:
		return isBroken(failed) && refusalOf(failed).Reason == ""
	}
}

// isBroken is true if the connection or the stream broke before there was an answer, as far as gRPC's text tells. It comes
// under many codes, most often as Internal, which without that is an answer that would be the same again.
func isBroken(failed *status.Status) bool {
	for _, text := range []string{
		"stream terminated by RST_STREAM", "server closed the stream without sending trailers", io.ErrUnexpectedEOF.Error(),
	} {
		if strings.HasPrefix(failed.Message(), text) {
			return true
		}
	}
	return false
}

// isAway is true if the server cannot be reached now, or says so, which tells nothing of what it can do.
func isAway(failed *status.Status) bool {
	return failed.Code() == codes.Unavailable || isBroken(failed)
}

// pauseBefore is how long to wait before attempt number attempts (the first is 0) over so many servers. One that was not
// tried in this round is tried at once: its neighbour's pushback does not bind it. pushback is the longest that any
// server of the round asked for.
func pauseBefore(attempts, servers int, pushback time.Duration) time.Duration {
	if attempts%servers != 0 {
		return 0
	}
	round := min(max(attempts/servers-1, 0), 16)
	pause := jittered(min(firstPause<<round, longestPause))
	if pushback <= 0 {
		return pause
	}
	// Jitter goes on top of a pushback: less than it would be refused again.
	return max(pause, pushback+jittered(pushback/8))
}

// patience is how long a call is tried: in all, and by one attempt before the next server is tried.
type patience struct {
	total, attempt time.Duration
	// How much longer than an attempt may take its answer is waited for in a session, where the server tells that time is up.
	grace time.Duration
}

// tries is what the attempts of one call have come to.
type tries struct {
	deadline moment
	total    time.Duration
	attempts int
	// The longest pushback of this round.
	pushback time.Duration
	// The last attempt that a server answered with a reason.
	answered *Refusal
	// Whether a server answered with anything but UNAVAILABLE, of onced or not.
	told bool
	// Whether an attempt failed by how client or server are set up, or for a host that nobody knows.
	setUp bool
	// Whether an attempt may have been carried out, although it was not answered.
	unsettled bool
}

// heard takes down that a server answered.
func (t *transport) heard(try *tries, refusal *Refusal) {
	try.told = try.told || refusal.Code != codes.Unavailable
	if refusal.Reason != "" {
		t.reached.Store(true)
		try.answered = refusal
	}
}

// isAnswer is true if what looks like a broken connection was sent by a server, such as a proxy in front of onced.
func isAnswer(failed *status.Status, trailer metadata.MD) bool {
	switch failed.Code() {
	case codes.Canceled, codes.Unknown, codes.Internal:
		// Only what was sent has a type.
		return len(trailer.Get("content-type")) > 0 || strings.HasPrefix(failed.Message(), notGRPC)
	default:
		return false
	}
}

// next waits for the next attempt, after one at server came to nothing. It fails if that would not help, or there is no
// time for it.
func (t *transport) next(ctx context.Context, try *tries, server *server, failed *status.Status, trailer metadata.MD) error {
	refusal := refusalOf(failed)
	try.attempts++
	if refusal.Reason != "" || isAnswer(failed, trailer) {
		t.heard(try, refusal)
	} else if !t.reached.Load() && refusal.isUnknownHost() && len(trailer) == 0 {
		// It may be known later, so that this is gone on with; but it is no outage.
		try.setUp = true
	} else if hint := server.setUpHint(ctx, refusal, t.reached.Load()); hint != "" {
		try.setUp = true
		refusal.Message = server.name + ": " + refusal.Message + "; " + hint
		// A client that was answered before sits it out: certificates are renewed, servers replaced.
		if try.attempts >= len(t.servers) && !t.reached.Load() {
			return &SetUpError{Message: refusal.Message}
		}
	}
	try.unsettled = try.unsettled || refusal.mayHaveBeenDone()
	say := adviceOf(failed, trailer)
	if !say.again {
		return refusal
	}
	try.pushback = max(try.pushback, say.pushback)
	t.moveOnFrom(server)
	pause := pauseBefore(try.attempts, len(t.servers), try.pushback)
	if pause > 0 {
		try.pushback = 0
	}
	left := try.deadline - t.clock()
	if pause >= left {
		return t.unavailable(try, refusal, left)
	}
	t.log.DebugContext(ctx, "onced: trying again", "server", server.name, "attempts", try.attempts, "pause", pause, "error", refusal)
	if !sleep(ctx, pause) {
		return givenUp(ctx)
	}
	return nil
}

func (t *transport) unavailable(try *tries, last *Refusal, left time.Duration) error {
	if last.Reason == "" && last.Code == codes.DeadlineExceeded && try.answered != nil {
		// What was said tells more of the server than that its time was up.
		told := *try.answered
		told.Message = last.Message + "; before that: " + told.Message
		last = &told
	}
	return &UnavailableError{
		Servers: t.names(), Tried: try.total - left, Last: last,
		told: try.told, setUp: try.setUp,
	}
}
