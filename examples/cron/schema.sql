-- What the shops sold.
create table sales (day date, shop text, pieces integer);

-- A report for each night: the fencing token of the newest run that came by, and what was mailed, once it was.
create table reports (minute text primary key, token bigint not null, body text);

-- What the mail server sends. Nothing here keeps a report from being mailed twice.
create table mails (id serial, minute text not null, body text not null);

insert into sales
select date '2026-11-20' + night, shop, pieces
from generate_series(0, 9) as night, (values ('east', 40), ('west', 60)) as sold (shop, pieces);
