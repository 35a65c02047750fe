// Package onced runs a function once for a key, wherever and however often it is called: the Go client of onced.
//
// [Run] claims the key, runs the function, stores what it returns, and gives every duplicate the same:
//
//	client, err := onced.New("10.0.0.1:7411,10.0.0.2:7411")
//	…
//	done, err := onced.Run(ctx, client, "order-17", func(ctx context.Context, claim *onced.Claim) (Receipt, error) {
//		return charge(ctx, claim.FencingToken())
//	}, onced.Namespace("shop"))
//
// # What becomes of the key
//
// A value that is returned is stored, and so is an error made by [Final]: duplicates get it. Any other error, a panic and
// [runtime.Goexit] give the key back by [OnFailure], or as [Fail] says. While the function runs, the claim is renewed in
// the background; when it is lost all the same, the function's context is cancelled, and [context.Cause] is a
// [*ClaimLostError].
//
// Go cannot stop a function. So one whose caller cancels its context keeps the claim until it has returned, and what it
// then returns is stored: a key that is free while its work still runs is work done twice.
//
// # What this does not do
//
// A process that is paused for longer than its lock does not know it, and may go on with its effects while somebody
// else has taken over. Give [Claim.FencingToken] to what the work changes, so that it can refuse a stale holder.
//
// # Errors
//
// Run returns an error of one of eight kinds, each with a type and a sentinel: [ErrNotBegun], [ErrInProgress],
// [ErrInDoubt], [ErrFailed], [ErrClaimLost], [ErrNotStored], [ErrFinal], [ErrUnreadable]. What a server said is in the
// chain as a [*Refusal].
package onced

// Version is that of this module.
const Version = "0.1.0"
