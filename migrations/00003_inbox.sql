-- +goose Up

-- The events that a group has handled, each row written in the transaction of the event's effects. The primary
-- key makes a second transaction for the same event wait for the first, and then do nothing.
CREATE TABLE streamkeel.inbox (
	consumer_group text        NOT NULL,
	source         text        NOT NULL,
	event_id       text        NOT NULL,
	handled_at     timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer_group, source, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- What the cleaner deletes by. It grows at its right end only, which is cheap.
CREATE INDEX inbox_handled_at ON streamkeel.inbox (handled_at);
