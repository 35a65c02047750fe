package onced

import (
	"errors"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Fail is an error for work to return: it failed with err, and rule says what becomes of the key.
func Fail(rule Rule, err error) error {
	if err == nil {
		err = errors.New("the work failed")
	}
	return &marked{error: err, rule: rule}
}

// Final is an error for work to return: it failed for good, and every duplicate gets this error. The code is any but
// [codes.OK].
func Final(code codes.Code, message string) error {
	return FinalStatus(status.New(code, message))
}

// FinalStatus is [Final] with details.
func FinalStatus(final *status.Status) error {
	// Not final.Err(): that is nil for a status that is OK.
	err := errors.New(final.Code().String() + ": " + final.Message())
	return &marked{error: err, final: final.Proto()}
}

// A marked error says what becomes of the key.
type marked struct {
	error
	rule  Rule
	final *statuspb.Status
}

// Unwrap is what failed.
func (m *marked) Unwrap() error { return m.error }

// GRPCStatus is the final error.
func (m *marked) GRPCStatus() *status.Status {
	if m.final == nil {
		st, _ := status.FromError(m.error)
		return st
	}
	return status.FromProto(proto.CloneOf(m.final))
}

// markOf finds what an error of the work says of its key. The marks of another run, whose error the work hands on, are not
// its own.
func markOf(err error) *marked {
	switch err := err.(type) {
	case nil, *FailedError, *ClaimLostError:
		return nil
	case *marked:
		return err
	case interface{ Unwrap() error }:
		return markOf(err.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range err.Unwrap() {
			if mark := markOf(err); mark != nil {
				return mark
			}
		}
	}
	return nil
}

// unmarked is what failed, where the error is nothing but the mark.
func unmarked(err error) error {
	if mark, ok := err.(*marked); ok && mark.final == nil {
		return mark.error
	}
	return err
}

// SaysOfKey is whether an error that work returns says itself what becomes of the key, by [Fail] or [Final].
func SaysOfKey(err error) bool {
	return markOf(err) != nil
}
