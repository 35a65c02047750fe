package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc/codes"
	"onced.dev/go/onced"
)

// A Credit is the outcome of a message.
type Credit struct {
	Points  int64 `json:"points"`
	Balance int64 `json:"balance"`
}

// errStale is that a newer claim has been at the ledger.
var errStale = errors.New("a newer claim of this message has been here")

// A ledger keeps points, and for each message the newest fencing token that it saw and what came of it.
type ledger struct {
	pool *pgxpool.Pool
}

// openLedger sets limits that a database has none of by itself: a worker that is suspended within a transaction would keep
// its rows locked for as long, and one that cannot reach the database would wait for the network.
func openLedger(ctx context.Context, url string) (ledger, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return ledger{}, err
	}
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "5s"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	return ledger{pool}, err
}

// enter shows a claim's token. It returns the credit that an earlier claim made, if one did, and errStale if a newer claim
// was here.
func (l ledger) enter(ctx context.Context, id string, token uint64) (credit Credit, found bool, err error) {
	var points, balance *int64
	err = l.pool.QueryRow(ctx, `
		insert into messages as m (id, token) values ($1, $2)
		on conflict (id) do update set token = excluded.token where m.token <= excluded.token
		returning points, balance`, id, int64(token)).Scan(&points, &balance)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return credit, false, errStale
	case err != nil || points == nil:
		return credit, false, err
	}
	return Credit{Points: *points, Balance: *balance}, true, nil
}

// credit adds points to an account and notes them as the message's outcome, in one transaction, unless a newer claim was
// here.
func (l ledger) credit(ctx context.Context, id string, token uint64, account string, points int64) (Credit, error) {
	// A transaction that is cut off may or may not have happened. So it is not ended with the claim: it goes to its end, and
	// the database says by the token whether the claim still counts.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	credit := Credit{Points: points}
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `update accounts set points = points + $2 where id = $1 returning points`, account, points).
			Scan(&credit.Balance)
		if errors.Is(err, pgx.ErrNoRows) {
			return onced.Final(codes.NotFound, fmt.Sprintf("account: there is no %q", account))
		}
		if err != nil {
			return err
		}
		noted, err := tx.Exec(ctx, `
			update messages set points = $3, balance = $4 where id = $1 and token = $2 and points is null`,
			id, int64(token), points, credit.Balance)
		if err == nil && noted.RowsAffected() == 0 {
			return errStale // And the points are taken back with the transaction.
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `insert into credits (message, account, points) values ($1, $2, $3)`, id, account, points)
		return err
	})
	return credit, err
}
