-- What the demo's services keep, beside Streamkeel's own schema. Nothing here is unique
-- that could hide a second effect: the ledger would show it.
CREATE SCHEMA demo;

-- The receiving service: one row a webhook, in the transaction of its event. version
-- counts the deliveries of a key; its row is the lock that keeps them in order.
CREATE TABLE demo.key (key text PRIMARY KEY, version bigint NOT NULL);
CREATE TABLE demo.delivery (
    event_id   text PRIMARY KEY,
    n          integer NOT NULL,
    key        text NOT NULL,
    version    bigint NOT NULL,
    repository text NOT NULL,
    type       text NOT NULL
);

-- The ledger: what each group did, once for each event.
CREATE TABLE demo.effect (grp text NOT NULL, event_id text NOT NULL);
CREATE INDEX ON demo.effect (grp, event_id);

-- Runs that were no first: a process died with the event, or its handler failed before.
CREATE TABLE demo.rerun (grp text NOT NULL, event_id text NOT NULL, attempt integer NOT NULL, deliveries integer NOT NULL);

-- The read model: deliveries by repository and type; and what it saw of each key's order.
CREATE TABLE demo.activity (repository text, type text, n bigint NOT NULL, PRIMARY KEY (repository, type));
CREATE TABLE demo.key_seen (key text PRIMARY KEY, version bigint NOT NULL, violations bigint NOT NULL);

-- The shop.
CREATE TABLE demo.orders (
    id       text PRIMARY KEY,
    event_id text NOT NULL,
    n        integer NOT NULL,
    customer integer NOT NULL,
    sku      integer NOT NULL,
    quantity integer NOT NULL,
    cents    bigint NOT NULL,
    state    text NOT NULL DEFAULT 'placed'
);
CREATE TABLE demo.stock (sku integer PRIMARY KEY, quantity bigint NOT NULL);
CREATE TABLE demo.account (customer integer PRIMARY KEY, cents bigint NOT NULL);
CREATE TABLE demo.till (sku integer PRIMARY KEY, cents bigint NOT NULL);

-- Whether the fault that makes some events poison is still there.
CREATE TABLE demo.fault (removed boolean NOT NULL);
INSERT INTO demo.fault VALUES (false);
INSERT INTO demo.stock SELECT i, 1000000 FROM generate_series(0, 49) i;
INSERT INTO demo.till SELECT i, 0 FROM generate_series(0, 49) i;
INSERT INTO demo.account SELECT i, 100000000 FROM generate_series(0, 199) i;
