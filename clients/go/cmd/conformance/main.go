// Command conformance is the agent of this library: it does what it is told by JSON, one command a line, and tells what
// came of it. The contract of the client libraries says by which words.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"onced.dev/go/onced"
)

// The longest command, in bytes.
const commandMaxBytes = 64 << 20

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
	a := &agent{out: json.NewEncoder(os.Stdout), clients: map[string]*onced.Client{}, runs: map[string]*run{}}
	a.out.SetEscapeHTML(false)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, commandMaxBytes)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) > 0 {
			a.obey(bytes.Clone(lines.Bytes()))
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// An agent's clients and runs are looked up by the goroutine that reads its commands, and by no other.
type agent struct {
	mu      sync.Mutex
	out     *json.Encoder
	clients map[string]*onced.Client
	runs    map[string]*run
}

type object = map[string]any

// A job is what is left of a command that was understood. It may take its time.
type job func() (any, error)

// told is the answer of a command that is done.
func told(ok object) (job, error) {
	return func() (any, error) { return ok, nil }, nil
}

// A kinded error is one that the driver can tell from others.
type kinded struct {
	kind string
	error
}

func invalid(err error) error { return &kinded{"invalid", err} }

func (a *agent) say(what any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.out.Encode(what); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (a *agent) answer(id json.RawMessage, ok any, err error) {
	if err == nil {
		a.say(object{"id": id, "ok": ok})
		return
	}
	kind := "failed"
	var known *kinded
	if errors.As(err, &known) {
		kind = known.kind
	}
	a.say(object{"id": id, "error": object{"kind": kind, "message": err.Error()}})
}

func (a *agent) obey(line []byte) {
	var command struct {
		ID json.RawMessage
		Do string
	}
	if err := json.Unmarshal(line, &command); err != nil {
		a.answer(json.RawMessage("null"), nil, invalid(err))
		return
	}
	commands := map[string]func([]byte) (job, error){
		"connect": a.connect, "run": a.run, "finish": a.finish, "claim": a.claim, "cancel": a.cancel,
		"fingerprint": fingerprint, "counts": a.counts, "checkpoint": a.checkpoint, "close": a.close,
	}
	do := commands[command.Do]
	if do == nil {
		a.answer(command.ID, nil, invalid(fmt.Errorf("there is no command %q", command.Do)))
		return
	}
	work, err := do(line)
	if err != nil {
		a.answer(command.ID, nil, err)
		return
	}
	go func() {
		ok, err := work()
		a.answer(command.ID, ok, err)
	}()
}

// read is a command's own fields.
func read[T any](line []byte) (T, error) {
	var fields T
	if err := json.Unmarshal(line, &fields); err != nil {
		return fields, invalid(err)
	}
	return fields, nil
}

func millis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func (a *agent) connect(line []byte) (job, error) {
	with, err := read[struct {
		Client, Servers, CA, Cert, Key, Token, Owner string
		TokenFile                                    string `json:"token_file"`
		Timeout                                      *int64
	}](line)
	if err != nil {
		return nil, err
	}
	var options []onced.Option
	if with.CA != "" {
		options = append(options, onced.WithCAFile(with.CA))
	}
	if with.Cert != "" || with.Key != "" {
		options = append(options, onced.WithCertificate(with.Cert, with.Key))
	}
	if with.Token != "" {
		options = append(options, onced.WithToken(with.Token))
	}
	if with.TokenFile != "" {
		options = append(options, onced.WithTokenFile(with.TokenFile))
	}
	if with.Timeout != nil {
		options = append(options, onced.WithTimeout(millis(*with.Timeout)))
	}
	if with.Owner != "" {
		options = append(options, onced.WithOwner(with.Owner))
	}
	client, err := onced.New(with.Servers, options...)
	if err != nil {
		return nil, invalid(err)
	}
	a.clients[with.Client] = client
	return told(object{})
}

func (a *agent) client(name string) (*onced.Client, error) {
	client := a.clients[name]
	if client == nil {
		return nil, invalid(fmt.Errorf("there is no client %q", name))
	}
	return client, nil
}

func (a *agent) counts(line []byte) (job, error) {
	with, err := read[struct{ Client string }](line)
	if err != nil {
		return nil, err
	}
	client, err := a.client(with.Client)
	if err != nil {
		return nil, err
	}
	return told(object{"unprotected": client.Unprotected()})
}

func (a *agent) close(line []byte) (job, error) {
	with, err := read[struct {
		Client   string
		Patience int64
	}](line)
	if err != nil {
		return nil, err
	}
	client, err := a.client(with.Client)
	if err != nil {
		return nil, err
	}
	return func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), millis(with.Patience))
		defer cancel()
		return object{}, client.Close(ctx)
	}, nil
}

func fingerprint(line []byte) (job, error) {
	with, err := read[struct {
		Kind, Text string
		Data       []byte
		Pointers   []string
	}](line)
	if err != nil {
		return nil, err
	}
	var digest []byte
	switch with.Kind {
	case "bytes":
		digest = onced.FingerprintBytes(with.Data)
	case "json":
		digest, err = onced.FingerprintJSON(json.RawMessage(with.Text))
	case "fields":
		digest, err = onced.FingerprintFields(json.RawMessage(with.Text), with.Pointers...)
	default:
		return nil, invalid(fmt.Errorf("there is no kind %q", with.Kind))
	}
	if err != nil {
		return nil, &kinded{"unfit", err}
	}
	return told(object{"digest": hex.EncodeToString(digest)})
}
