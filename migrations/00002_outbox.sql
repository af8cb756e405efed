-- +goose Up

-- The outbox: events are rows, written in the transaction that they tell of; a relay moves them to Redis
-- Streams in order. docs/wire.md is the contract for programs that write rows with plain SQL.

-- Topics, as they were first declared. The relay writes them into Redis, and again when Redis lost them.
CREATE TABLE streamkeel.topic (
	namespace   text        NOT NULL DEFAULT 'sk',
	name        text        NOT NULL,
	partitions  integer     NOT NULL DEFAULT 1,
	stream_key  text, -- an existing stream as the one partition; NULL for <namespace>:<name>.<partition>
	declared_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (namespace, name),
	CONSTRAINT topic_namespace CHECK (namespace ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
	CONSTRAINT topic_name CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
	CONSTRAINT topic_partitions CHECK (partitions BETWEEN 1 AND 4096),
	CONSTRAINT topic_stream_key CHECK (stream_key IS NULL OR partitions = 1
		AND octet_length(stream_key) BETWEEN 1 AND 512 AND stream_key ~ '^[^{}]*([{][^{}]+[}][^{}]*)?$')
);

-- The first four bytes of the SHA-256 of a text, big endian.
CREATE FUNCTION streamkeel.hash32(value text) RETURNS bigint
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	AS $$ SELECT ('x' || encode(substring(sha256(convert_to(value, 'UTF8')) FROM 1 FOR 4), 'hex'))::bit(32)::bigint $$;

-- The partition of a key, as every other implementation computes it.
CREATE FUNCTION streamkeel.partition_of(key text, partitions integer) RETURNS integer
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	AS $$ SELECT (streamkeel.hash32(key) % partitions)::integer $$;

-- How many shards the relays share; relay_lease has a row for each. To have more, change both before the
-- first event is published, and never after.
CREATE FUNCTION streamkeel.outbox_shards() RETURNS integer
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	AS $$ SELECT 8 $$;

-- The shard of a partition. The partitions of a topic go round the shards, from one that its name decides.
CREATE FUNCTION streamkeel.outbox_shard(namespace text, topic text, partition integer) RETURNS smallint
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	AS $$ SELECT ((streamkeel.hash32(namespace || '/' || topic) + partition) % streamkeel.outbox_shards())::smallint $$;

-- A UUIDv7 as text: the id of events whose writer names none.
CREATE FUNCTION streamkeel.new_event_id() RETURNS text
	LANGUAGE sql VOLATILE PARALLEL SAFE
	AS $$
		SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
			PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
			FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid::text
	$$;

-- Attributes are an object of at most 32 strings, with names of [a-z0-9]{1,20}.
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

-- Ids are drawn one by one: CACHE must stay 1, or a session would draw small ids late.
CREATE SEQUENCE streamkeel.outbox_id CACHE 1;

-- One row for each event. Rows are only ever inserted; row partitions are dropped as a whole when
-- every row in them was published and is older than the relay's Retention.
--
-- xid tells which transaction wrote the row, and so in which batch it goes. created_at tells the row partition;
-- it is the wall clock at the insert, not the start of the transaction, so that nobody comes late to a row
-- partition whose time is over. Neither may be set by hand.
CREATE TABLE streamkeel.outbox (
	id             bigint      NOT NULL DEFAULT nextval('streamkeel.outbox_id'),
	xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
	created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	shard          smallint    NOT NULL, -- outbox_place fills shard, partition and source where they are NULL
	partition      integer     NOT NULL,
	namespace      text        NOT NULL DEFAULT 'sk',
	topic          text        NOT NULL,
	key            text        NOT NULL DEFAULT '',
	event_id       text        NOT NULL DEFAULT streamkeel.new_event_id(),
	type           text        NOT NULL,
	source         text        NOT NULL,
	time           timestamptz          DEFAULT clock_timestamp(),
	content_type   text                 DEFAULT 'application/json',
	schema         text,
	correlation_id text,
	causation_id   text,
	traceparent    text,
	expires        timestamptz,
	attributes     jsonb,
	data           bytea       NOT NULL DEFAULT '',
	CONSTRAINT outbox_partition CHECK (partition BETWEEN 0 AND 4095 AND shard >= 0),
	CONSTRAINT outbox_key CHECK (octet_length(key) <= 1024),
	CONSTRAINT outbox_event_id CHECK (octet_length(event_id) BETWEEN 1 AND 200),
	CONSTRAINT outbox_type CHECK (octet_length(type) BETWEEN 1 AND 200),
	CONSTRAINT outbox_source CHECK (octet_length(source) <= 300),
	CONSTRAINT outbox_time CHECK (time >= '0001-01-01 00:00:00+00' AND time < '10000-01-01 00:00:00+00'),
	CONSTRAINT outbox_content_type CHECK (octet_length(content_type) <= 200),
	CONSTRAINT outbox_schema CHECK (octet_length(schema) <= 300),
	CONSTRAINT outbox_cause CHECK (octet_length(correlation_id) <= 200 AND octet_length(causation_id) <= 200
		AND octet_length(traceparent) <= 200),
	CONSTRAINT outbox_expires CHECK (expires >= '0001-01-01 00:00:00+00' AND expires < '10000-01-01 00:00:00+00'),
	CONSTRAINT outbox_attributes CHECK (streamkeel.valid_attributes(attributes)),
	CONSTRAINT outbox_data CHECK (octet_length(data) <= 1048576)
) PARTITION BY RANGE (created_at);

-- A payload is written once, read once and dropped: compressing it costs more than it saves.
ALTER TABLE streamkeel.outbox ALTER COLUMN data SET STORAGE EXTERNAL;

-- The one index: what a shard has beyond a snapshot. It is all that an insert pays for.
CREATE INDEX outbox_shard_xid ON streamkeel.outbox (shard, xid);

-- Fills in what a plain INSERT leaves out. The outbox package fills it in itself, and the trigger
-- does not run.
-- +goose StatementBegin
CREATE FUNCTION streamkeel.outbox_place() RETURNS trigger
	LANGUAGE plpgsql
	AS $$
	DECLARE
		n integer;
	BEGIN
		SELECT partitions INTO n FROM streamkeel.topic WHERE namespace = NEW.namespace AND name = NEW.topic;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'topic % is not declared in namespace %', NEW.topic, NEW.namespace
				USING ERRCODE = 'foreign_key_violation', HINT = format('Declare it once: SELECT streamkeel.declare_topic(%L, <partitions>)', NEW.topic);
		END IF;
		NEW.partition := streamkeel.partition_of(CASE WHEN NEW.key = '' THEN NEW.event_id ELSE NEW.key END, n);
		NEW.shard := streamkeel.outbox_shard(NEW.namespace, NEW.topic, NEW.partition);
		NEW.source := coalesce(NEW.source, NEW.topic);
		RETURN NEW;
	END
	$$;
-- +goose StatementEnd

CREATE TRIGGER outbox_place BEFORE INSERT ON streamkeel.outbox
	FOR EACH ROW WHEN (NEW.shard IS NULL OR NEW.partition IS NULL)
	EXECUTE FUNCTION streamkeel.outbox_place();

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
			EXECUTE format('CREATE TABLE streamkeel.%I (LIKE streamkeel.outbox INCLUDING ALL)', part);
			-- Nothing is updated here, and rows go with the whole table: vacuum would read them for nothing.
			EXECUTE format('ALTER TABLE streamkeel.%I SET (autovacuum_vacuum_insert_threshold = -1)', part);
			EXECUTE format('ALTER TABLE streamkeel.outbox ATTACH PARTITION streamkeel.%I FOR VALUES FROM (%L) TO (%L)',
				part, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
			made := made + 1;
		END LOOP;
		RETURN made;
	END
	$$;
-- +goose StatementEnd

SELECT streamkeel.outbox_add_partitions(7);
