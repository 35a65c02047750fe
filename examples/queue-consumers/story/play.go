package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

//go:embed schema.sql
var schema string

const (
	ackWait = time.Second
	lockTTL = 2 * time.Second
	// The broker's own window for duplicates: two minutes unless told otherwise, and shortened here.
	brokerWindow = 2 * time.Second
	// How long anything that must happen may take.
	patience = 30 * time.Second
)

// An event is a line of a worker's log, or something that the story saw itself.
type event struct {
	Msg, Message, Worker, Error string
	Delivery                    uint64
	RanHere                     bool      `json:"ran_here"`
	KeptUntil                   time.Time `json:"kept_until"`
	Time                        time.Time
}

// A play is the story once, with one kind of worker, which has a stream and a schema of its own.
type play struct {
	kind, program string
	env           []string
	account       strings.Builder
	broken        []string

	js   jetstream.JetStream
	pool *pgxpool.Pool

	mu      sync.Mutex
	events  []event
	changed chan struct{}
	workers map[string]*exec.Cmd
	// Ratings of a message, by its id, wait for a gate from the given one on.
	gates  map[string]gate
	ending bool
	alive  sync.WaitGroup
}

type gate struct {
	from int
	open chan struct{}
}

// tell adds to the printed account.
func (p *play) tell(format string, values ...any) {
	fmt.Fprintf(&p.account, format+"\n", values...)
}

// expect notes what is broken.
func (p *play) expect(holds bool, format string, values ...any) {
	if !holds {
		p.broken = append(p.broken, fmt.Sprintf(format, values...))
		p.tell("   BROKEN: "+format, values...)
	}
}

func (p *play) note(e event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	close(p.changed)
	p.changed = make(chan struct{})
}

// all is the events of a kind about a message.
func (p *play) all(msg, message string) []event {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []event
	for _, e := range p.events {
		if e.Msg == msg && e.Message == message {
			found = append(found, e)
		}
	}
	return found
}

func (p *play) count(msg, message string) int { return len(p.all(msg, message)) }

// until waits until something has come up n times about a message.
func (p *play) until(msg, message string, n int) []event {
	p.eventually(fmt.Sprintf("%d times %q about %s", n, msg, message), func() bool { return p.count(msg, message) >= n })
	return p.all(msg, message)
}

func (p *play) eventually(what string, holds func() bool) {
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			panic(fmt.Errorf("%s: %s never came", p.kind, what))
		}
	}
}

// settled is how often the broker was told that it is done with a message.
func (p *play) settled(message string) int {
	return p.count("acknowledged", message) + p.count("skipped", message) + p.count("terminated", message)
}

func (p *play) untilSettled(message string, n int) {
	p.eventually(fmt.Sprintf("the end of %s", message), func() bool { return p.settled(message) >= n })
}

// open makes the stream, the schema, the rating service, and starts the workers.
func (p *play) open(ctx context.Context) error {
	p.changed, p.workers, p.gates = make(chan struct{}), map[string]*exec.Cmd{}, map[string]gate{}
	connection, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		return err
	}
	if p.js, err = jetstream.New(connection); err != nil {
		return err
	}
	_, err = p.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: p.kind, Subjects: []string{p.subject()}, Duplicates: brokerWindow,
	})
	if err != nil {
		return err
	}
	database := os.Getenv("DATABASE_URL") + "?search_path=" + p.kind
	if p.pool, err = pgxpool.New(ctx, database); err != nil {
		return err
	}
	if _, err = p.pool.Exec(ctx, "create schema "+p.kind+";"+schema); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, http.HandlerFunc(p.rate)) }()
	p.env = append(p.env, os.Environ()...)
	p.env = append(p.env, "DATABASE_URL="+database, "STREAM="+p.kind, "RATES_URL=http://"+listener.Addr().String(),
		"ACK_WAIT="+ackWait.String(), "LOCK_TTL="+lockTTL.String(),
		"CRASH=kill:credited:o-03 kill:begun:o-13 kill:completed:o-14 stop:rated:o-15")
	for _, name := range []string{"w1", "w2", "w3"} {
		if err := p.start(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) subject() string { return "orders." + p.kind }

// start runs a worker, and starts another one in its place when it dies, as systemd would.
func (p *play) start(name string) error {
	directory, err := os.Executable()
	if err != nil {
		return err
	}
	command := exec.Command(filepath.Join(filepath.Dir(directory), p.program))
	command.Env, command.Stderr = append(p.env, "WORKER="+name), os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending {
		return nil
	}
	if err := command.Start(); err != nil {
		return err
	}
	p.workers[name] = command
	p.alive.Add(1)
	go func() {
		defer p.alive.Done()
		p.follow(output)
		_ = command.Wait()
		if err := p.start(name); err != nil {
			p.note(event{Msg: "ended", Worker: name, Error: err.Error()})
		}
	}()
	return nil
}

func (p *play) follow(output io.Reader) {
	for lines := bufio.NewScanner(output); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err == nil {
			p.note(e)
		}
	}
}

// resume lets a suspended worker go on.
func (p *play) resume(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.workers[name].Process.Signal(syscall.SIGCONT)
}

// kill ends the workers at once.
func (p *play) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = true
	for _, worker := range p.workers {
		_ = worker.Process.Kill()
	}
}

// close ends the workers, and waits for them.
func (p *play) close() {
	p.mu.Lock()
	p.ending = true
	for _, worker := range p.workers {
		_ = worker.Process.Signal(syscall.SIGTERM)
		_ = worker.Process.Signal(syscall.SIGCONT)
	}
	p.mu.Unlock()
	p.alive.Wait()
}

// rate is the service that says how many points an order is worth. It is away when o-17 first asks.
func (p *play) rate(answer http.ResponseWriter, request *http.Request) {
	message := request.FormValue("message")
	p.note(event{Msg: "rated", Message: message})
	nth := p.count("rated", message)
	p.mu.Lock()
	held, gated := p.gates[message]
	p.mu.Unlock()
	if gated && nth >= held.from {
		select {
		case <-held.open:
		case <-request.Context().Done():
		}
	}
	if message == "o-17" && nth == 1 {
		http.Error(answer, "away", http.StatusServiceUnavailable)
		return
	}
	var cents int64
	_, _ = fmt.Sscan(request.FormValue("cents"), &cents)
	fmt.Fprint(answer, cents/100)
}

// hold lets ratings of a message wait, from the nth on, until the returned function is called.
func (p *play) hold(message string, from int) (open func()) {
	held := gate{from, make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gates[message] = held
	return sync.OnceFunc(func() { close(held.open) })
}

// publish publishes an order, and tells whether the broker dropped it as a duplicate.
func (p *play) publish(ctx context.Context, id, account string, cents int64) bool {
	message := nats.NewMsg(p.subject())
	if id != "" {
		message.Header.Set(nats.MsgIdHdr, id)
	}
	message.Data = fmt.Appendf(nil, `{"account":%q,"cents":%d}`, account, cents)
	published, err := p.js.PublishMsg(ctx, message)
	if err != nil {
		panic(err)
	}
	return published.Duplicate
}

// publishAnew publishes an order once more when the broker has forgotten its id.
func (p *play) publishAnew(ctx context.Context, id, account string) {
	p.eventually("the end of the broker's window for "+id, func() bool {
		if !p.publish(ctx, id, account, 1000) {
			return true
		}
		time.Sleep(50 * time.Millisecond)
		p.note(event{}) // Try again.
		return false
	})
}

func (p *play) number(ctx context.Context, query string, values ...any) int {
	var number int
	if err := p.pool.QueryRow(ctx, query, values...).Scan(&number); err != nil {
		panic(err)
	}
	return number
}

// credits is how often an order had its effect.
func (p *play) credits(ctx context.Context, id string) int {
	return p.number(ctx, "select count(*) from credits where message = $1 and points = 10", id)
}
