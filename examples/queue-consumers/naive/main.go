// Naive is the worker as it is often written: with nothing against duplicates (GUARD=none), or with a table of the messages
// that were seen, into which each is written before its work (GUARD=first).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"onced.dev/examples/queue-consumers/internal/crash"
)

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)).With("worker", os.Getenv("WORKER")))
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	must(err)
	connection, err := nats.Connect(os.Getenv("NATS_URL"))
	must(err)
	js, err := jetstream.New(connection)
	must(err)
	ackWait, err := time.ParseDuration(os.Getenv("ACK_WAIT"))
	must(err)
	orders, err := js.CreateOrUpdateConsumer(ctx, os.Getenv("STREAM"), jetstream.ConsumerConfig{
		Durable: "points", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: 5,
	})
	must(err)
	for {
		batch, err := orders.Fetch(5, jetstream.FetchMaxWait(time.Second))
		must(err)
		var atWork sync.WaitGroup
		for message := range batch.Messages() {
			atWork.Add(1)
			go func() {
				defer atWork.Done()
				handle(ctx, pool, message)
			}()
		}
		atWork.Wait()
	}
}

func handle(ctx context.Context, pool *pgxpool.Pool, message jetstream.Msg) {
	id := message.Headers().Get(nats.MsgIdHdr)
	log := slog.With("message", id)
	err := credit(ctx, pool, message, id)
	switch {
	case errors.Is(err, errSeen):
		log.Info("skipped")
		_ = message.Ack()
	case err != nil:
		log.Error("failed", "error", err.Error())
		_ = message.Nak()
	default:
		crash.Here("completed", id, first(message))
		log.Info("acknowledged")
		_ = message.Ack()
	}
}

var errSeen = errors.New("seen before")

func credit(ctx context.Context, pool *pgxpool.Pool, message jetstream.Msg, id string) error {
	if os.Getenv("GUARD") == "first" {
		marked, err := pool.Exec(ctx, `insert into seen (id) values ($1) on conflict do nothing`, id)
		if err != nil {
			return err
		}
		if marked.RowsAffected() == 0 {
			return errSeen
		}
	}
	crash.Here("begun", id, first(message))
	var order struct {
		Account string
		Cents   int64
	}
	if err := json.Unmarshal(message.Data(), &order); err != nil {
		return err
	}
	response, err := http.Get(fmt.Sprintf("%s?message=%s&cents=%d", os.Getenv("RATES_URL"), id, order.Cents))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var points int64
	if err := json.NewDecoder(response.Body).Decode(&points); err != nil {
		return err
	}
	crash.Here("rated", id, first(message))
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		added, err := tx.Exec(ctx, `update accounts set points = points + $2 where id = $1`, order.Account, points)
		if err == nil && added.RowsAffected() == 0 {
			return fmt.Errorf("no account %s", order.Account)
		}
		if err == nil {
			_, err = tx.Exec(ctx, `insert into credits (message, account, points) values ($1, $2, $3)`, id, order.Account, points)
		}
		return err
	})
	if err == nil {
		slog.Info("credited", "message", id)
		crash.Here("credited", id, first(message))
	}
	return err
}

func first(message jetstream.Msg) bool {
	about, err := message.Metadata()
	return err == nil && about.NumDelivered == 1
}

func must(err error) {
	if err != nil {
		slog.Error("ended", "error", err.Error())
		os.Exit(1)
	}
}
