package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"onced.dev/go/onced"
)

// How often a claim that was lost is looked at for another reason.
const look = 20 * time.Millisecond

// A run is a run of the library, whose work waits to be told how to end.
type run struct {
	name   string
	ctx    context.Context
	cancel context.CancelFunc
	// How the work is to end; the work has one.
	ends chan ending

	mu sync.Mutex
	// Nil before the work has begun.
	claim *onced.Claim
	// Whether it has ended, or was told to.
	over bool
}

// An ending is what the work returns, or panics with.
type ending struct {
	value json.RawMessage
	err   error
	panic string
}

type runCommand struct {
	Run, Client, Key string
	Namespace        *string
	Fingerprint      []byte
	LockTTL          *int64 `json:"lock_ttl"`
	Wait             json.RawMessage
	Retention        *int64
	OnLapse          string `json:"on_lapse"`
	OnFailure        string `json:"on_failure"`
	Owner            *string
	FailOpen         *int64 `json:"fail_open"`
	Codec            string
}

func (c *runCommand) options() ([]onced.RunOption, error) {
	var options []onced.RunOption
	add := func(option onced.RunOption) { options = append(options, option) }
	if c.Namespace != nil {
		add(onced.Namespace(*c.Namespace))
	}
	if len(c.Fingerprint) > 0 {
		add(onced.Fingerprint(c.Fingerprint))
	}
	if c.LockTTL != nil {
		add(onced.LockTTL(millis(*c.LockTTL)))
	}
	if string(c.Wait) == "null" {
		add(onced.WaitForever())
	} else if c.Wait != nil {
		wait, err := strconv.ParseInt(string(c.Wait), 10, 64)
		if err != nil {
			return nil, invalid(err)
		}
		add(onced.Wait(millis(wait)))
	}
	if c.Retention != nil {
		add(onced.Retention(millis(*c.Retention)))
	}
	switch c.OnLapse {
	case "take_over":
		add(onced.OnLapse(onced.TakeOver))
	case "hold":
		add(onced.OnLapse(onced.Hold))
	}
	switch c.OnFailure {
	case "retry":
		add(onced.OnFailure(onced.Retry))
	case "in_doubt":
		add(onced.OnFailure(onced.InDoubt))
	}
	if c.Owner != nil {
		add(onced.Owner(*c.Owner))
	}
	if c.FailOpen != nil {
		add(onced.FailOpen(millis(*c.FailOpen)))
	}
	return options, nil
}

func (a *agent) run(line []byte) (job, error) {
	with, err := read[runCommand](line)
	if err != nil {
		return nil, err
	}
	client, err := a.client(with.Client)
	if err != nil {
		return nil, err
	}
	options, err := with.options()
	if err != nil {
		return nil, err
	}
	r := &run{name: with.Run, ends: make(chan ending, 1)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	a.runs[with.Run] = r
	asJSON := func(value any) json.RawMessage {
		text, err := json.Marshal(value)
		if err != nil {
			panic(err) // It came from JSON.
		}
		return text
	}
	switch with.Codec {
	case "bytes":
		go play(a, r, client, with.Key, append(options, onced.Using(onced.Bytes)), fromJSON[[]byte], func(b []byte) json.RawMessage { return asJSON(b) })
	case "text":
		go play(a, r, client, with.Key, append(options, onced.Using(onced.Text)), fromJSON[string], func(s string) json.RawMessage { return asJSON(s) })
	case "json", "":
		go play(a, r, client, with.Key, options, fromJSON[json.RawMessage], func(v json.RawMessage) json.RawMessage { return v })
	default:
		return nil, invalid(fmt.Errorf("there is no codec %q", with.Codec))
	}
	return told(object{})
}

func fromJSON[T any](text json.RawMessage) (T, error) {
	var value T
	err := json.Unmarshal(text, &value)
	return value, err
}

// play is a run, from its Begin to its end.
func play[T any](a *agent, r *run, client *onced.Client, key string, options []onced.RunOption, from func(json.RawMessage) (T, error), to func(T) json.RawMessage) {
	defer func() {
		if panicked := recover(); panicked != nil {
			a.say(object{"event": "ended", "run": r.name, "result": "failed", "message": fmt.Sprint(panicked)})
		}
	}()
	done, err := onced.Run(r.ctx, client, key, func(ctx context.Context, claim *onced.Claim) (T, error) {
		var none T
		r.begin(a, claim)
		go r.tellLosses(a, ctx, claim)
		select {
		case end := <-r.ends:
			if end.panic != "" {
				panic(end.panic)
			}
			if end.err != nil {
				return none, end.err
			}
			return from(end.value)
		case <-r.ctx.Done(): // Its caller gave up. A loss does not end it.
			r.end()
			return none, r.ctx.Err()
		}
	}, options...)
	r.end()
	if err != nil {
		a.say(failure(r.name, err))
		return
	}
	a.say(object{
		"event": "ended", "run": r.name, "result": "done", "value": to(done.Value), "ran_here": done.RanHere, "owner": done.Owner,
		"attempt": number(done.Attempt), "token": number(done.FencingToken), "protected": done.Protected,
	})
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func (r *run) begin(a *agent, claim *onced.Claim) {
	r.mu.Lock()
	r.claim = claim
	r.mu.Unlock()
	var saved any
	if checkpoint, ok := claim.Checkpoint(); ok {
		saved = append([]byte{}, checkpoint...) // An empty one is not null.
	}
	a.say(object{
		"event": "started", "run": r.name, "token": number(claim.FencingToken()), "attempt": number(claim.Attempt()),
		"checkpoint": saved, "protected": claim.Protected(),
	})
}

func (r *run) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}

// tellLosses tells each reason for which the claim is lost, for as long as the work goes on.
func (r *run) tellLosses(a *agent, ctx context.Context, claim *onced.Claim) {
	<-ctx.Done()
	for told := onced.Lost(0); ; time.Sleep(look) {
		why := claim.WhyLost()
		r.mu.Lock()
		over := r.over
		r.mu.Unlock()
		if over || why == onced.GivenBack {
			return
		}
		if why != told {
			told = why
			a.say(object{"event": "lost", "run": r.name, "why": lossNames[why]})
		}
		if why == onced.TakenOver {
			return
		}
	}
}

var lossNames = map[onced.Lost]string{
	onced.TakenOver: "taken_over", onced.LockEnded: "lock_ended", onced.GivenBack: "given_back",
}

func (a *agent) working(line []byte) (*run, error) {
	with, err := read[struct{ Run string }](line)
	if err != nil {
		return nil, err
	}
	r := a.runs[with.Run]
	if r == nil {
		return nil, invalid(fmt.Errorf("there is no run %q", with.Run))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claim == nil {
		return nil, invalid(fmt.Errorf("the work of %q has not begun", with.Run))
	}
	return r, nil
}

func (a *agent) finish(line []byte) (job, error) {
	r, err := a.working(line)
	if err != nil {
		return nil, err
	}
	with, err := read[struct {
		Value         json.RawMessage
		Fail, Message string
		Final         *struct {
			Code    codes.Code
			Message string
		}
		Panic string
	}](line)
	if err != nil {
		return nil, err
	}
	end := ending{value: with.Value, panic: with.Panic}
	switch {
	case with.Final != nil:
		end.err = onced.Final(with.Final.Code, with.Final.Message)
	case with.Fail == "plain":
		end.err = errors.New(with.Message)
	case with.Fail == "retry":
		end.err = onced.Fail(onced.Retry, errors.New(with.Message))
	case with.Fail == "in_doubt":
		end.err = onced.Fail(onced.InDoubt, errors.New(with.Message))
	case with.Value == nil && with.Panic == "":
		return nil, invalid(errors.New("it does not say how to end"))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil, &kinded{"ended", fmt.Errorf("the work of %q has ended", r.name)}
	}
	r.over = true
	r.ends <- end
	return told(object{})
}

func (a *agent) checkpoint(line []byte) (job, error) {
	r, err := a.working(line)
	if err != nil {
		return nil, err
	}
	with, err := read[struct{ Data []byte }](line)
	if err != nil {
		return nil, err
	}
	return func() (any, error) { return object{}, r.claim.SaveCheckpoint(context.Background(), with.Data) }, nil
}

func (a *agent) claim(line []byte) (job, error) {
	r, err := a.working(line)
	if err != nil {
		return nil, err
	}
	var lost any
	if why := r.claim.WhyLost(); why != 0 {
		lost = lossNames[why]
	}
	return told(object{
		"token": number(r.claim.FencingToken()), "attempt": number(r.claim.Attempt()), "left": r.claim.LockLeft().Milliseconds(),
		"lost": lost, "protected": r.claim.Protected(),
	})
}

func (a *agent) cancel(line []byte) (job, error) {
	with, err := read[struct{ Run string }](line)
	if err != nil {
		return nil, err
	}
	r := a.runs[with.Run]
	if r == nil {
		return nil, invalid(fmt.Errorf("there is no run %q", with.Run))
	}
	r.cancel()
	return told(object{})
}
