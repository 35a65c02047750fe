package main

import (
	"errors"

	"onced.dev/go/onced"
)

// failure is how a run ended that has no value.
func failure(run string, err error) object {
	ended := object{"event": "ended", "run": run, "message": err.Error()}
	var (
		refusal    *onced.Refusal
		inProgress *onced.InProgressError
		inDoubt    *onced.InDoubtError
		failed     *onced.FailedError
		lost       *onced.ClaimLostError
		notStored  *onced.NotStoredError
		final      *onced.FinalError
		unreadable *onced.UnreadableError
	)
	if errors.As(err, &refusal) {
		ended["reason"] = refusal.Reason
	}
	switch {
	case errors.As(err, &inProgress):
		ended["result"], ended["owner"], ended["attempt"] = "in_progress", inProgress.Owner, number(inProgress.Attempt)
	case errors.As(err, &inDoubt):
		ended["result"], ended["owner"], ended["attempt"] = "in_doubt", inDoubt.Owner, number(inDoubt.Attempt)
		ended["token"], ended["reason"] = number(inDoubt.FencingToken), inDoubt.Reason
	case errors.As(err, &failed):
		ended["result"], ended["rule"], ended["released"] = "failed", failed.Rule.String(), failed.Released
		ended["attempt"], ended["token"] = number(failed.Attempt), number(failed.FencingToken)
	case errors.As(err, &lost):
		ended["result"], ended["lost"] = "claim_lost", lossNames[lost.Lost]
	case errors.As(err, &notStored):
		ended["result"] = "not_stored"
		ended["attempt"], ended["token"] = number(notStored.Attempt), number(notStored.FencingToken)
	case errors.As(err, &final):
		ended["result"], ended["code"], ended["message"] = "final", int(final.Code), final.Message
		complete(ended, final.Completion)
	case errors.As(err, &unreadable):
		ended["result"] = "unreadable"
		complete(ended, unreadable.Completion)
	case errors.Is(err, onced.ErrNotBegun):
		ended["result"] = "not_begun"
	default:
		panic(err) // There is no other kind.
	}
	return ended
}

func complete(ended object, completion onced.Completion) {
	ended["ran_here"], ended["owner"] = completion.RanHere, completion.Owner
	ended["attempt"], ended["token"] = number(completion.Attempt), number(completion.FencingToken)
	ended["protected"] = completion.Protected
}
