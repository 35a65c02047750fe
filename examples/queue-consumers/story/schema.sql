-- Points of the accounts.
create table accounts (id text primary key, points bigint not null);
insert into accounts values ('account-1', 0);

-- For each message the newest fencing token that came by, and its outcome, once it had its effect.
create table messages (id text primary key, token bigint not null, points bigint, balance bigint);

-- Each effect. Nothing here keeps a message from having two.
create table credits (message text not null, account text not null, points bigint not null);

-- The naive worker with GUARD=first marks messages here.
create table seen (id text primary key);
