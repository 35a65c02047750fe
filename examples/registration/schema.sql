CREATE TABLE users (
    id    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    site  text NOT NULL,
    email text NOT NULL,
    name  text NOT NULL,
    UNIQUE (site, email)
);

-- What became of each key, written in the transaction that makes the user, or refuses to. Rows can go once onced has
-- forgotten their key for certain: after the retention, and as long again as a process may be paused.
CREATE TABLE registrations (
    key     text PRIMARY KEY, -- as onced has it: a digest of the site, and the key of the request
    token   bigint NOT NULL, -- the highest fencing token that was seen
    outcome jsonb,           -- stays when the user is deleted: the answer to this key does not change
    made_at timestamptz NOT NULL DEFAULT now()
);
