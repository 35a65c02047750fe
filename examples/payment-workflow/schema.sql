CREATE TABLE accounts (
    id      text PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
);

-- The highest fencing token that the ledger has seen for each payment.
CREATE TABLE fences (
    payment text PRIMARY KEY,
    token   bigint NOT NULL
);

-- What was debited, by the number that the payment service chose.
CREATE TABLE debits (
    id      uuid PRIMARY KEY,
    payment text NOT NULL,
    account text NOT NULL REFERENCES accounts,
    amount  bigint NOT NULL,
    balance bigint NOT NULL -- after it
);

-- The guard of the naive service.
CREATE TABLE processed (
    payment text PRIMARY KEY
);
