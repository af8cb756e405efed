-- +goose Up

-- The outbox: events are rows, written in the transaction that they tell of; a relay moves them to Redis
-- Streams in order. docs/wire.md is the contract for programs that write rows with plain SQL.

-- The first four bytes of the SHA-256 of a text, big endian.
CREATE FUNCTION streamkeel.hash32(value text) RETURNS bigint
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	AS $$ SELECT ('x' || encode(substring(sha256(convert_to(value, 'UTF8')) FROM 1 FOR 4), 'hex'))::bit(32)::bigint $$;

-- The partition of a key, as every other implementation computes it.
CREATE FUNCTION streamkeel.partition_of(key text, partitions integer) RETURNS integer
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	AS $$ SELECT (streamkeel.hash32(key) % partitions)::integer $$;

-- How many shards the relays share; relay_lease has a row for each. To have more, change both before the
-- first topic is declared, and never after.
CREATE FUNCTION streamkeel.outbox_shards() RETURNS integer
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	AS $$ SELECT 8 $$;

-- Topics, as they were first declared. The relay writes them into Redis, and again when Redis lost them.
CREATE TABLE streamkeel.topic (
	namespace   text        NOT NULL DEFAULT 'sk',
	name        text        NOT NULL,
	partitions  integer     NOT NULL DEFAULT 1,
	stream_key  text, -- an existing stream as the one partition; NULL for <namespace>:<name>.<partition>
	-- The partitions of a topic go round the shards, from one that its name decides: partition p is in shard
	-- (first_shard + p) % outbox_shards().
	first_shard smallint    NOT NULL GENERATED ALWAYS AS
		((streamkeel.hash32(namespace || '/' || name) % streamkeel.outbox_shards())::smallint) STORED,
	declared_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (namespace, name),
	CONSTRAINT topic_namespace CHECK (namespace ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
	CONSTRAINT topic_name CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
	CONSTRAINT topic_partitions CHECK (partitions BETWEEN 1 AND 4096),
	CONSTRAINT topic_stream_key CHECK (stream_key IS NULL OR partitions = 1
		AND octet_length(stream_key) BETWEEN 1 AND 512 AND stream_key ~ '^[^{}]*([{][^{}]+[}][^{}]*)?$')
);

-- A UUIDv7 as text: the id of events whose writer names none.
CREATE FUNCTION streamkeel.new_event_id() RETURNS text
	LANGUAGE sql VOLATILE PARALLEL SAFE
	AS $$
		SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
			PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
			FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid::text
	$$;

-- Attributes are an object of at most 32 strings, with names of [a-z0-9]{1,20}.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.valid_attributes(attributes jsonb) RETURNS boolean
	LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
	AS $$
	BEGIN
		RETURN jsonb_typeof(attributes) = 'object' AND (
			SELECT count(*) <= 32 AND coalesce(bool_and(name ~ '^[a-z0-9]{1,20}$'
				AND jsonb_typeof(value) = 'string' AND octet_length(value #>> '{}') <= 4096), true)
			FROM jsonb_each(attributes) AS a(name, value));
	EXCEPTION WHEN invalid_parameter_value THEN -- no object
		RETURN false;
	END
	$$;
-- +goose StatementEnd

-- The bounds of an event's fields, as package stream has them.
CREATE DOMAIN streamkeel.event_name AS text CHECK (octet_length(VALUE) BETWEEN 1 AND 200);
CREATE DOMAIN streamkeel.event_source AS text CHECK (octet_length(VALUE) <= 300);
CREATE DOMAIN streamkeel.event_key AS text CHECK (octet_length(VALUE) <= 1024);
CREATE DOMAIN streamkeel.event_time AS timestamptz CHECK (VALUE >= '0001-01-01 00:00:00+00' AND VALUE < '10000-01-01 00:00:00+00');
CREATE DOMAIN streamkeel.event_attributes AS jsonb CHECK (streamkeel.valid_attributes(VALUE));
CREATE DOMAIN streamkeel.event_data AS bytea CHECK (octet_length(VALUE) <= 1048576);

-- Ids are drawn one by one: CACHE must stay 1, or a session would draw small ids late.
CREATE SEQUENCE streamkeel.outbox_id CACHE 1;

-- One row for each event. Rows are only ever inserted; row partitions are dropped as a whole when
-- every row in them was published and is older than the relay's Retention. The outbox package writes here, and has
-- checked what it writes; everybody else inserts into the view outbox. A trigger or a CHECK on this table would cost
-- each INSERT a twentieth, since its text is parsed anew every time.
--
-- xid tells which transaction wrote the row, and so in which batch it goes. created_at tells the row partition;
-- it is the wall clock at the insert, not the start of the transaction, so that nobody comes late to a row
-- partition whose time is over.
CREATE TABLE streamkeel.outbox_row (
	id             bigint      NOT NULL DEFAULT nextval('streamkeel.outbox_id'),
	xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
	created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	shard          smallint    NOT NULL,
	partition      integer     NOT NULL,
	namespace      text        NOT NULL,
	topic          text        NOT NULL,
	key            text        NOT NULL,
	event_id       text        NOT NULL,
	type           text        NOT NULL,
	source         text        NOT NULL,
	time           timestamptz,
	content_type   text,
	schema         text,
	correlation_id text,
	causation_id   text,
	traceparent    text,
	expires        timestamptz,
	attributes     jsonb,
	data           bytea       NOT NULL
) PARTITION BY RANGE (created_at);

-- A payload is written once, read once and dropped: compressing it costs more than it saves.
ALTER TABLE streamkeel.outbox_row ALTER COLUMN data SET STORAGE EXTERNAL;

-- The one index: what a shard has beyond a snapshot. It is all that an insert pays for.
CREATE INDEX outbox_row_shard_xid ON streamkeel.outbox_row (shard, xid);

-- The outbox as programs write it that do not use the outbox package. A row needs a topic and a type.
CREATE VIEW streamkeel.outbox AS SELECT * FROM streamkeel.outbox_row;
ALTER VIEW streamkeel.outbox ALTER COLUMN namespace SET DEFAULT 'sk';
ALTER VIEW streamkeel.outbox ALTER COLUMN key SET DEFAULT '';
ALTER VIEW streamkeel.outbox ALTER COLUMN event_id SET DEFAULT streamkeel.new_event_id();
ALTER VIEW streamkeel.outbox ALTER COLUMN time SET DEFAULT clock_timestamp();
ALTER VIEW streamkeel.outbox ALTER COLUMN content_type SET DEFAULT 'application/json';
ALTER VIEW streamkeel.outbox ALTER COLUMN data SET DEFAULT '';

-- Where an event goes. Its parameters' types refuse what is out of bounds.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.outbox_place_of(namespace text, topic text, key streamkeel.event_key, event_id streamkeel.event_name,
	type streamkeel.event_name, source streamkeel.event_source, "time" streamkeel.event_time, content_type streamkeel.event_name,
	schema streamkeel.event_source, correlation_id streamkeel.event_name, causation_id streamkeel.event_name,
	traceparent streamkeel.event_name, expires streamkeel.event_time, attributes streamkeel.event_attributes,
	data streamkeel.event_data, OUT shard smallint, OUT partition integer)
	LANGUAGE plpgsql STABLE
	AS $$
	DECLARE
		t streamkeel.topic;
	BEGIN
		SELECT * INTO t FROM streamkeel.topic d WHERE d.namespace = outbox_place_of.namespace AND d.name = topic;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'topic % is not declared in namespace %', topic, namespace
				USING ERRCODE = 'foreign_key_violation', HINT = format('Declare it once: SELECT streamkeel.declare_topic(%L, <partitions>)', topic);
		END IF;
		partition := streamkeel.partition_of(coalesce(nullif(key, ''), event_id, ''), t.partitions);
		shard := (t.first_shard + partition) % streamkeel.outbox_shards();
	END
	$$;
-- +goose StatementEnd

-- Checks a row of the view or of outbox_delayed and fills in where it goes, whatever the writer says of that. It has
-- the rights of its owner, so that a role which may insert into the view alone cannot pass it by.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.outbox_place() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$
	BEGIN
		NEW.source := coalesce(NEW.source, NEW.topic);
		SELECT p.shard, p.partition INTO NEW.shard, NEW.partition
		FROM streamkeel.outbox_place_of(NEW.namespace, NEW.topic, NEW.key, NEW.event_id, NEW.type, NEW.source, NEW.time, NEW.content_type,
			NEW.schema, NEW.correlation_id, NEW.causation_id, NEW.traceparent, NEW.expires, NEW.attributes, NEW.data) p;
		IF TG_WHEN = 'INSTEAD OF' THEN
			INSERT INTO streamkeel.outbox_row (shard, partition, namespace, topic, key, event_id, type, source, time, content_type,
				schema, correlation_id, causation_id, traceparent, expires, attributes, data)
			VALUES (NEW.shard, NEW.partition, NEW.namespace, NEW.topic, NEW.key, NEW.event_id, NEW.type, NEW.source, NEW.time, NEW.content_type,
				NEW.schema, NEW.correlation_id, NEW.causation_id, NEW.traceparent, NEW.expires, NEW.attributes, NEW.data)
			RETURNING id, xid, created_at INTO NEW.id, NEW.xid, NEW.created_at;
		END IF;
		RETURN NEW;
	END
	$$;
-- +goose StatementEnd

-- Or any role could make a view of its own with this trigger, and write into the outbox through it.
REVOKE EXECUTE ON FUNCTION streamkeel.outbox_place() FROM PUBLIC;

CREATE TRIGGER outbox_place INSTEAD OF INSERT ON streamkeel.outbox
	FOR EACH ROW EXECUTE FUNCTION streamkeel.outbox_place();

-- Declares a topic for programs that write rows with plain SQL. The first declaration stands.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.declare_topic(name text, partitions integer DEFAULT 1, namespace text DEFAULT 'sk', stream_key text DEFAULT NULL)
	RETURNS void
	LANGUAGE plpgsql
	AS $$
	DECLARE
		have streamkeel.topic;
	BEGIN
		INSERT INTO streamkeel.topic (namespace, name, partitions, stream_key)
		VALUES (declare_topic.namespace, declare_topic.name, declare_topic.partitions, declare_topic.stream_key)
		ON CONFLICT DO NOTHING;
		SELECT * INTO have FROM streamkeel.topic t
		WHERE t.namespace = declare_topic.namespace AND t.name = declare_topic.name;
		IF have.partitions <> declare_topic.partitions OR have.stream_key IS DISTINCT FROM declare_topic.stream_key THEN
			RAISE EXCEPTION 'topic % was declared differently: % partitions, stream key %', name, have.partitions, have.stream_key
				USING ERRCODE = 'check_violation';
		END IF;
	END
	$$;
-- +goose StatementEnd

-- Makes the row partitions of the days from yesterday to days ahead, in UTC, and returns how many it made. No
-- insert waits for it: CREATE … PARTITION OF would lock the outbox, LIKE and ATTACH do not.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.outbox_add_partitions(days integer) RETURNS integer
	LANGUAGE plpgsql
	AS $$
	DECLARE
		today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
		day   date;
		part  text;
		made  integer := 0;
	BEGIN
		FOR day IN SELECT today + i FROM generate_series(-1, days) AS i LOOP
			part := 'outbox_' || to_char(day, 'YYYYMMDD');
			CONTINUE WHEN to_regclass('streamkeel.' || part) IS NOT NULL;
			EXECUTE format('CREATE TABLE streamkeel.%I (LIKE streamkeel.outbox_row INCLUDING ALL)', part);
			-- Nothing is updated here, and rows go with the whole table: vacuum would read them for nothing.
			EXECUTE format('ALTER TABLE streamkeel.%I SET (autovacuum_vacuum_insert_threshold = -1)', part);
			EXECUTE format('ALTER TABLE streamkeel.outbox_row ATTACH PARTITION streamkeel.%I FOR VALUES FROM (%L) TO (%L)',
				part, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
			made := made + 1;
		END LOOP;
		RETURN made;
	END
	$$;
-- +goose StatementEnd

SELECT streamkeel.outbox_add_partitions(7);

-- Events for later. A relay moves them into the outbox when they are due, in the order in which they are.
CREATE TABLE streamkeel.outbox_delayed (
	due_at timestamptz NOT NULL,
	LIKE streamkeel.outbox_row INCLUDING DEFAULTS INCLUDING STORAGE
);
ALTER TABLE streamkeel.outbox_delayed
	DROP COLUMN xid,
	ALTER COLUMN namespace SET DEFAULT 'sk',
	ALTER COLUMN key SET DEFAULT '',
	ALTER COLUMN event_id SET DEFAULT streamkeel.new_event_id(),
	ALTER COLUMN time SET DEFAULT clock_timestamp(),
	ALTER COLUMN content_type SET DEFAULT 'application/json',
	ALTER COLUMN data SET DEFAULT '';
CREATE INDEX outbox_delayed_due ON streamkeel.outbox_delayed (due_at, id);

CREATE TRIGGER outbox_place BEFORE INSERT ON streamkeel.outbox_delayed
	FOR EACH ROW WHEN (NEW.shard IS NULL OR NEW.partition IS NULL)
	EXECUTE FUNCTION streamkeel.outbox_place();

-- Who relays a shard. Only the owner with the row's epoch freezes batches. published is the last batch that
-- is wholly in Redis, written with the renewals: it may be late, never early.
CREATE TABLE streamkeel.relay_lease (
	shard       smallint    PRIMARY KEY,
	owner       text        NOT NULL DEFAULT '',
	epoch       bigint      NOT NULL DEFAULT 0,
	lease_until timestamptz NOT NULL DEFAULT '-infinity',
	published   bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The relays that are running, so that each takes its part of the shards.
CREATE TABLE streamkeel.relay_instance (
	id          text        PRIMARY KEY,
	lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The log of batches, a row for each, never updated: what a shard's rows were between two snapshots. It is written
-- before the batch is published, and read again by whoever takes over, and to publish again what Redis lost.
CREATE TABLE streamkeel.relay_batch (
	shard     smallint    NOT NULL,
	batch     bigint      NOT NULL,
	tag       text        NOT NULL, -- random: tells the batch from another of the same number in a lost timeline
	snap_from pg_snapshot NOT NULL,
	snap_to   pg_snapshot NOT NULL,
	-- The position of the last row in each stream, "<batch>-<row id>" by "<namespace>/<topic>/<partition>": of the streams
	-- that the batch before this one touched, or where complete is set, of all of the shard's.
	prev      jsonb       NOT NULL,
	complete  boolean     NOT NULL,
	retry     boolean     NOT NULL DEFAULT false, -- its rows are those of outbox_failed that name it in retry_batch
	frozen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (shard, batch)
);

INSERT INTO streamkeel.relay_lease (shard) SELECT generate_series(0, streamkeel.outbox_shards() - 1);
INSERT INTO streamkeel.relay_batch (shard, batch, tag, snap_from, snap_to, prev, complete)
	SELECT shard, 0, '', '1:1:', '1:1:', '{}', true FROM streamkeel.relay_lease;

-- Which of the shards have rows beyond their snapshots. One snapshot holds for all of it: the caller's. Index scans end at
-- the first row that they see; a bitmap would gather all of them. Row partitions of the days to come are looked into only
-- where that is asked for: they cost most of it, and have rows only where a clock was set back.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.relay_probe(shards smallint[], snaps text[], ahead boolean) RETURNS smallint[]
	LANGUAGE plpgsql STABLE SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
	AS $$
	DECLARE
		upto timestamptz := CASE WHEN ahead THEN 'infinity' ELSE clock_timestamp() + interval '1 minute' END;
	BEGIN
		RETURN ARRAY(
			SELECT s.shard FROM unnest(shards, snaps::pg_snapshot[]) AS s(shard, snap)
			WHERE EXISTS (SELECT FROM streamkeel.outbox_row o
					WHERE o.shard = s.shard AND o.xid >= pg_snapshot_xmax(s.snap) AND o.created_at < upto)
				-- Those that are over are looked up one by one: a join may be hashed, over all rows.
				OR EXISTS (SELECT FROM pg_snapshot_xip(s.snap) AS x(xid)
					CROSS JOIN LATERAL (SELECT FROM streamkeel.outbox_row o
						WHERE o.shard = s.shard AND o.xid = x.xid AND o.created_at < upto LIMIT 1) o
					WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())));
	END
	$$;
-- +goose StatementEnd

-- Why a shard stands still, for the operator, and what the operator decided; see streamkeel outbox status.
CREATE TABLE streamkeel.relay_stop (
	shard      smallint    PRIMARY KEY,
	reason     text        NOT NULL,
	detail     text        NOT NULL,
	stopped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	-- What publishing again would send.
	first_batch bigint,
	rows_lost   bigint,
	bytes_lost  bigint,
	oldest_lost timestamptz,
	decision    text
);

-- Rows that could not be published, and under ParkKey the later rows of their keys. The relay that owns
-- the shard publishes them when they are wanted again, in the batch retry_batch, in the order of seq.
CREATE TABLE streamkeel.outbox_failed (
	seq          bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	batch        bigint      NOT NULL, -- with id, the position that the row would have had
	parked       boolean     NOT NULL, -- later rows of the key wait behind it
	reason       text        NOT NULL,
	failed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
	retry_wanted boolean     NOT NULL DEFAULT false,
	retry_batch  bigint,
	retried_at   timestamptz,
	LIKE streamkeel.outbox_row INCLUDING STORAGE
);
ALTER TABLE streamkeel.outbox_failed DROP COLUMN xid, DROP COLUMN created_at;
CREATE UNIQUE INDEX outbox_failed_position ON streamkeel.outbox_failed (shard, batch, id);
