CREATE TABLE stock (
    product TEXT PRIMARY KEY,
    available INTEGER NOT NULL CHECK (available >= 0)
);

-- What function.py keeps of an order: the token of the last attempt that came this far, and the answer that it committed.
CREATE TABLE orders (
    order_id TEXT PRIMARY KEY,
    fencing_token BIGINT NOT NULL,
    answer TEXT
);

-- What naive.py keeps: that the order was seen.
CREATE TABLE seen (
    order_id TEXT PRIMARY KEY
);
