// Worker credits points for orders that come over a JetStream stream, once for each message id, however often the message
// is published and delivered.
//
// It takes batches, and any number of workers may share the stream. NATS_URL, DATABASE_URL, ONCED_SERVER and RATES_URL say
// where everything is; WORKER is its name in the log.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc/codes"
	"onced.dev/go/onced"

	"onced.dev/examples/queue-consumers/internal/crash"
)

const (
	batchSize = 5
	// A publisher may repeat a message for a day, and so may the broker.
	dedupWindow = 24 * time.Hour
	// How long the work of a message may take. While it runs, its claim is renewed and its batch waits for it, so a rating
	// service that hangs must not keep them for ever.
	workLimit = time.Minute
	// When a message whose outcome is in doubt is looked at again: a person has to decide about it first.
	doubtDelay = 10 * time.Minute
)

type worker struct {
	client  *onced.Client
	ledger  ledger
	rates   string
	ackWait time.Duration
	lockTTL time.Duration
}

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)).With("worker", os.Getenv("WORKER")))
	// Asked to end, it fetches no more, and finishes the batch in hand.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("ended", "error", err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	w := &worker{rates: os.Getenv("RATES_URL")}
	var err error
	if w.ackWait, err = duration("ACK_WAIT", 30*time.Second); err != nil {
		return err
	}
	if w.lockTTL, err = duration("LOCK_TTL", 15*time.Second); err != nil {
		return err
	}
	if w.client, err = onced.New(""); err != nil {
		return err
	}
	if w.ledger, err = openLedger(ctx, os.Getenv("DATABASE_URL")); err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer w.ledger.pool.Close()
	// Away, the broker is tried again for two minutes, and after that Fetch fails.
	connection, err := nats.Connect(os.Getenv("NATS_URL"), nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
		if err != nil {
			slog.Error("the broker is away", "error", err.Error())
		}
	}))
	if err != nil {
		return fmt.Errorf("NATS_URL: %w", err)
	}
	defer connection.Close()
	stream, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	if err := w.consume(ctx, stream, os.Getenv("STREAM")); err != nil {
		return err
	}
	closing, cancel := context.WithTimeout(context.Background(), w.lockTTL)
	defer cancel()
	return w.client.Close(closing)
}

// consume takes batches until it is asked to end, or the broker has none for it any more: then something is wrong that
// whoever starts this program anew should see.
func (w *worker) consume(ctx context.Context, js jetstream.JetStream, stream string) error {
	orders, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "points", AckPolicy: jetstream.AckExplicitPolicy, AckWait: w.ackWait,
		// The broker counts deliveries, not failures. A message whose work takes long is delivered many times, and must not
		// run out of them. What fails for good is terminated below.
		MaxDeliver: -1,
	})
	if err != nil {
		return fmt.Errorf("STREAM %q: %w", stream, err)
	}
	for ctx.Err() == nil {
		batch, err := orders.Fetch(batchSize, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			return err
		}
		// Side by side: the broker's clock runs for the last message of the batch as for the first.
		var atWork sync.WaitGroup
		for message := range batch.Messages() {
			atWork.Add(1)
			go func() {
				defer atWork.Done()
				w.handle(ctx, message)
			}()
		}
		atWork.Wait()
		// No message is no error. No consumer is.
		if err := batch.Error(); err != nil {
			return fmt.Errorf("fetching from %q: %w", stream, err)
		}
	}
	return nil
}

// handle has the work of a message done once, and tells the broker what became of it.
func (w *worker) handle(ctx context.Context, message jetstream.Msg) {
	// The publisher's id, which is the same when it publishes again. The broker's sequence number would not be.
	id := message.Headers().Get(nats.MsgIdHdr)
	log := slog.With("message", id, "delivery", deliveries(message))
	if id == "" || !utf8.ValidString(id) {
		log.Error("terminated", "error", "the header Nats-Msg-Id is missing, or not UTF-8: without it a repetition cannot be told")
		answer(log, message.Term())
		return
	}
	done, err := onced.Run(ctx, w.client, id, func(ctx context.Context, claim *onced.Claim) (Credit, error) {
		return w.credit(ctx, log, claim, id, message.Data())
	},
		onced.Namespace("points"),
		// An id that comes with another order is a mistake of its publisher, and no duplicate.
		onced.Fingerprint(onced.FingerprintBytes(message.Data())),
		onced.LockTTL(w.lockTTL),
		onced.Retention(dedupWindow),
		// While another worker is at it, the broker keeps the copy. To wait here would make the whole batch wait.
		onced.Wait(0),
		// The end of ctx ends the waiting; work that has begun is finished.
		onced.Detached(),
	)
	crash.Here("completed", id, done.RanHere && done.Attempt == 1)

	var final *onced.FinalError
	var doubt *onced.InDoubtError
	switch {
	case err == nil:
		log.Info("acknowledged", "points", done.Value.Points, "balance", done.Value.Balance, "ran_here", done.RanHere,
			"attempt", done.Attempt, "kept_until", done.ExpiresAt)
		answer(log, message.Ack())
	case errors.As(err, &final):
		// Whoever gets it again gets this again, and nobody tries it again.
		log.Error("terminated", "error", final.Message, "ran_here", final.Completion.RanHere)
		answer(log, message.Term())
	case errors.Is(err, onced.ErrUnreadable):
		// It was done, by a version of this program whose outcomes this one cannot read.
		log.Warn("acknowledged", "error", err.Error())
		answer(log, message.Ack())
	case errors.As(err, &doubt):
		// Nobody runs it until a person has found out what happened, and told onced: "onced resolve", with this token.
		log.Error("in doubt", "token", doubt.FencingToken, "error", err.Error())
		answer(log, message.NakWithDelay(doubtDelay))
	case refusedForGood(err):
		log.Error("terminated", "error", err.Error())
		answer(log, message.Term())
	case errors.Is(err, onced.ErrNotBegun) && ctx.Err() == nil:
		// onced is away, or refuses all messages for how it or this worker is set up. No message is to blame.
		log.Error("later", "error", err.Error())
		answer(log, message.NakWithDelay(w.ackWait))
	default:
		// At work elsewhere, failed for now, taken over, or not known to be stored: later. Whatever was done by then is found.
		log.Warn("later", "error", err.Error())
		answer(log, message.NakWithDelay(w.ackWait))
	}
}

// credit is the work, under a claim. An error that says nothing of the key frees it, so that the next delivery tries again:
// even if the transaction was committed and only its answer was lost, since the ledger then has the credit.
func (w *worker) credit(ctx context.Context, log *slog.Logger, claim *onced.Claim, id string, body []byte) (Credit, error) {
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	crash.Here("begun", id, claim.Attempt() == 1)
	order, err := parse(body)
	if err != nil {
		return Credit{}, onced.Final(codes.InvalidArgument, err.Error())
	}
	// From here on the ledger refuses older claims. If one of them did the work and died, this is what it did.
	credit, found, err := w.ledger.enter(ctx, id, claim.FencingToken())
	if found || err != nil {
		return credit, err
	}
	points, err := w.rate(ctx, id, order)
	if err != nil {
		return Credit{}, err
	}
	crash.Here("rated", id, claim.Attempt() == 1)
	credit, err = w.ledger.credit(ctx, id, claim.FencingToken(), order.Account, points)
	if errors.Is(err, errStale) {
		log.Warn("refused by the ledger", "token", claim.FencingToken())
	}
	if err == nil {
		log.Info("credited", "token", claim.FencingToken(), "attempt", claim.Attempt())
		crash.Here("credited", id, claim.Attempt() == 1)
	}
	return credit, err
}

// refusedForGood is whether onced will never take this message: its id stands for another order, or is no key. It goes by
// the reason: the codes of these are also those of a lock TTL or a retention that is out of range, which the next start of
// this worker may set right.
func refusedForGood(err error) bool {
	var refusal *onced.Refusal
	return errors.Is(err, onced.ErrNotBegun) && errors.As(err, &refusal) &&
		slices.Contains([]string{"FINGERPRINT_MISMATCH", "KEY_TOO_LONG", "KEY_REQUIRED"}, refusal.Reason)
}

// answer is for answers to the broker. One that is lost costs a redelivery, and nothing else.
func answer(log *slog.Logger, err error) {
	if err != nil {
		log.Warn("not answered", "error", err.Error())
	}
}

func deliveries(message jetstream.Msg) uint64 {
	about, err := message.Metadata()
	if err != nil {
		return 0
	}
	return about.NumDelivered
}

func duration(name string, otherwise time.Duration) (time.Duration, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	value, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return value, nil
}
